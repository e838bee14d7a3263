"""Whether the judge of candidates takes the right one, and whether it should doubt near equals.

``python -m benchmarks.accuracy.judged``: figures of docs/decisions/2026-12-01-judge.md. Every
candidate of a setting in which sources share their outputs is fitted to all images and tested,
beside what it is judged by. The last lines compare rules: the best score, all sources whatever they
score, all sources unless another is ahead by some standard errors of the paired difference, and the
best of the single sources as they are (docs/decisions/2026-12-01-blind.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

import pleas_fx as pf
from benchmarks.accuracy import asked as common
from benchmarks.accuracy.ablations import ARCHITECTURE
from benchmarks.accuracy.evaluate import Tests
from benchmarks.accuracy.measure import Case, Setting, evaluated
from benchmarks.accuracy.methods import FEW
from benchmarks.accuracy.scenarios import SCENARIOS
from benchmarks.accuracy.sources import calibration, given, sources
from benchmarks.accuracy.tasks import Store
from passes.judge import answers
from pleas_fx import candidates, settling
from pleas_fx.candidates import Candidate, Half, Tried
from pleas_fx.fitting import Fitting

NAMES = ("same-task", "domains", "three-digits", "four-domains")
ALL = "all sources"
UNTAUGHT = "alone"  # titles that end so: as they are
ERRORS = (0.5, 1.0, 2.0)


@dataclass(frozen=True, slots=True)
class Judged:
    """A candidate: what it was given for its answer to every image, and how right it is."""

    title: str
    each: Tensor
    accuracy: float  # percent

    @property
    def score(self) -> float:
        """What the judge goes by."""
        return float(self.each.mean())


@dataclass(slots=True)
class Watch:
    """Looks on while candidates are tried."""

    accuracy: Callable[[Any], float]
    fittings: list[Fitting] = field(default_factory=list)
    each: list[Tensor] = field(default_factory=list)  # of the candidates, in the order tried
    found: list[Judged] = field(default_factory=list)

    def judged(self, everyone: Candidate, fitting: Fitting, *rest: Any) -> Candidate:
        """As in the library."""
        self.fittings.append(fitting)
        return library_judged(everyone, fitting, *rest)

    def score(self, trials: Sequence[Candidate], halves: Sequence[Half]) -> float:
        """As in the library, which tries one candidate after the other."""
        pairs = zip(trials, halves, strict=True)
        self.each.append(torch.cat([_each(trial, half) for trial, half in pairs]))
        return library_score(trials, halves)

    def noted(self, chosen: Candidate, tried: Sequence[Tried]) -> Candidate:
        """All sources are tried last and stand first."""
        for one, each in zip([*tried[1:], tried[0]], self.each, strict=True):
            network = self.fittings[0].outcome(one.candidate).network.module
            self.found.append(Judged(one.candidate.title, each, self.accuracy(network)))
        return chosen


library_judged, library_score = settling.judged, candidates._score


def _each(trial: Candidate, half: Half) -> Tensor:
    found = answers(trial.planned[1].module, half.judged.batches)
    pairs = zip(found, half.wanted, strict=True)
    return torch.cat([w[0].softmax(1).gather(1, f[0].argmax(1, True))[:, 0] for f, w in pairs])


def tried(name: str, architecture: str, budget: float, seed: int, store: Store) -> list[Judged]:
    """Every candidate of a setting."""
    scenario = SCENARIOS[name]
    models, tests = sources(scenario, architecture, seed, store), Tests(scenario, store)
    case = Case(Setting(name, architecture, seed), "pleas", budget)
    watch = Watch(lambda network: 100 * evaluated(case, network, models, tests).accuracy)
    with (
        mock.patch.object(settling, "judged", watch.judged),
        mock.patch.object(
            settling, "safest", candidates.choose
        ),  # blind, they compete nowhere else
        mock.patch.object(candidates, "_score", watch.score),
        mock.patch.object(candidates, "_noted", watch.noted),
    ):
        pf.merge(
            models,
            given(scenario, calibration(scenario, seed, store)),
            flops=budget,
            heads=scenario.heads,
            seed=seed,
            progress=False,
            example_inputs=torch.zeros(2, 1, 28, 28),
        )
    return watch.found


def ahead(one: Judged, other: Judged) -> float:
    """By how many standard errors of the paired difference."""
    gain = (one.each - other.each).double()
    return float(gain.mean() / (gain.std() / math.sqrt(len(gain))).clamp_min(1e-12))


def taken(found: Sequence[Judged], errors: float) -> Judged:
    """All sources unless the best of the others is ahead by more than that."""
    every = next(one for one in found if one.title == ALL)
    best = max((one for one in found if one is not every), key=lambda one: one.score)
    return best if ahead(best, every) > errors else every


def _alone(found: Sequence[Judged]) -> Judged:
    single = [one for one in found if one.title.startswith("source ")]
    return max((one for one in single if one.title.endswith(UNTAUGHT)), key=lambda one: one.score)


def line(setting: str, found: Sequence[Judged]) -> str:
    """What the best of some sources is to all of them, and every candidate."""
    every, best = taken(found, math.inf), taken(found, -math.inf)
    shown = "; ".join(f"{one.title} {one.score:.3f} {one.accuracy:.1f}" for one in found)
    return (
        f"{setting}: {best.title} ahead by {best.score - every.score:+.4f}, "
        f"{ahead(best, every):+.2f} standard errors; by {best.accuracy - every.accuracy:+.1f} "
        f"points of accuracy ({shown})"
    )


def summary(settings: Sequence[Sequence[Judged]]) -> list[str]:
    """What rules would have brought, and how well scores tell."""
    rules: dict[str, Callable[[Sequence[Judged]], Judged]] = {
        "best score": partial(taken, errors=0.0),
        ALL: partial(taken, errors=math.inf),
        **{f"beyond {e:g} standard errors": partial(taken, errors=e) for e in ERRORS},
        "the best source as it is": _alone,
        "most accurate": lambda found: max(found, key=lambda one: one.accuracy),
    }
    lines = [
        f"{title}: {np.mean([rule(found).accuracy for found in settings]):.2f}"
        for title, rule in rules.items()
    ]
    pairs = [(taken(found, -math.inf), taken(found, math.inf)) for found in settings]
    gains = [(100 * (a.score - b.score), a.accuracy - b.accuracy) for a, b in pairs]
    if len(gains) > 1:
        lines.append(f"correlation of gains: {np.corrcoef(*np.array(gains).T)[0, 1]:.2f}")
    return lines


def main() -> None:
    """Print as they come, then the rules."""
    parser = common.parser(__doc__)
    parser.add_argument("--only", nargs="+", default=NAMES, help="scenarios with shared outputs")
    parser.add_argument("--architecture", nargs="+", default=[ARCHITECTURE])
    parser.add_argument("--budgets", nargs="+", type=float, default=FEW)
    parser.add_argument("--seeds", type=int, default=1)
    asked = parser.parse_args()
    store, settings = common.store(asked), []
    torch.set_num_threads(1)
    for architecture, name, budget, seed in product(
        asked.architecture, asked.only, asked.budgets, range(asked.seeds)
    ):
        settings.append(tried(name, architecture, budget, seed, store))
        print(line(f"{name} {architecture} {budget:g}x, seed {seed}", settings[-1]), flush=True)
    print("\n".join([f"{len(settings)} settings, accuracy in percent:", *summary(settings)]))


if __name__ == "__main__":
    main()
