"""Whether what a plan leaves of the outputs tells how good it is: plans of one budget, all fitted.

``python -m benchmarks.accuracy.contested``: figures of docs/decisions/2026-11-27-contest.md, of the
narrow ResNet and two seeds. Every setting's plan, one for each source that counts twice and 14 with
weights of groups drawn at random are fitted to all images and tested. ``--draws 0 --each`` shows
what weights of sources do, plan by plan.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any
from unittest import mock

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn

import pleas_fx as pf
from benchmarks.accuracy import asked as common
from benchmarks.accuracy.ablations import ARCHITECTURE
from benchmarks.accuracy.evaluate import Tests
from benchmarks.accuracy.measure import Case, Setting, evaluated
from benchmarks.accuracy.scenarios import SCENARIOS
from benchmarks.accuracy.sources import calibration, given, sources
from benchmarks.accuracy.tasks import Store
from pleas_fx import settling
from pleas_fx.candidates import Candidate
from pleas_fx.contest import SPREAD, Emphasis
from pleas_fx.fitting import Fitting
from pleas_fx.ir import GroupId

PLANS, SEEDS = 14, 2
SETTINGS = tuple(
    (name, budget)
    for name, budgets in (
        ("disjoint", (0.5, 0.75, 1.0)),
        ("disjoint-joint", (0.5, 0.75, 1.0)),
        ("domains", (1.0, 1.2)),
        ("three-digits", (0.5, 1.0, 1.2)),
    )
    for budget in budgets
)


def plans(
    models: Sequence[nn.Module], data: object, draws: int, **options: Any
) -> list[tuple[float, nn.Module]]:
    """What trials of plans left, and the networks fitted to all images; the default's first.

    All of them have all sources.
    """
    found: list[tuple[float, nn.Module]] = []
    fittings: list[Fitting] = []
    contested = settling.contested

    def watched(chosen: Candidate, fitting: Fitting, *rest: Any) -> Any:
        fittings.append(fitting)
        return contested(chosen, fitting, *rest)

    def everyone(
        first: Any, count: int, groups: Sequence[GroupId], attempt: Any, left: Any, **_: Any
    ) -> Any:
        tried = [first, *(attempt(emphasis) for emphasis in emphases(count, groups, draws))]
        kept = [one for one in tried if one is not None]
        found.extend((left(one), _fitted(fittings[0], one.candidate)) for one in kept)
        return first

    with (
        mock.patch.object(settling, "contest", everyone),
        mock.patch.object(settling, "contested", watched),
        mock.patch.object(settling, "choose", lambda _, everyone, *__: everyone),
    ):
        pf.merge(models, data, progress=False, trials=draws or None, **options)
    return found


def emphases(count: int, groups: Sequence[GroupId], draws: int) -> Iterator[Emphasis]:
    """Every source twice, and groups as the contest draws them."""
    for source in range(count):
        yield Emphasis(tuple(2.0 if s == source else 1.0 for s in range(count)))
    rng = np.random.default_rng(5)
    for _ in range(draws):
        drawn = np.exp(SPREAD * rng.standard_normal(len(groups))).tolist()
        yield Emphasis(groups=dict(zip(groups, drawn, strict=True)))


def _fitted(fitting: Fitting, candidate: Candidate) -> nn.Module:
    return fitting.outcome(candidate).network.module


def tried(
    name: str, architecture: str, budget: float, seed: int, draws: int, store: Store
) -> list[tuple[float, float]]:
    """What every plan of a setting left, and its accuracy in percent."""
    scenario = SCENARIOS[name]
    models, tests = sources(scenario, architecture, seed, store), Tests(scenario, store)
    case = Case(Setting(name, architecture, seed), "pleas", budget)
    accuracy: Callable[[nn.Module], float] = lambda m: (  # noqa: E731
        100 * evaluated(case, m, models, tests).accuracy
    )
    found = plans(
        models,
        given(scenario, calibration(scenario, seed, store)),
        draws,
        flops=budget,
        heads=scenario.heads,
        example_inputs=torch.zeros(2, 1, 28, 28),
    )
    return [(left, accuracy(model)) for left, model in found]


def line(
    name: str, architecture: str, budget: float, seed: int, draws: int, each: bool, store: Store
) -> str:
    """One setting."""
    start = time.perf_counter()
    found = tried(name, architecture, budget, seed, draws, store)
    left, right = map(np.array, zip(*found, strict=True))
    plan_by_plan = ", ".join(f"{a:.1f} ({e:.3f} left)" for e, a in found) if each else ""
    return (
        f"{name} {architecture} {budget:g}x, seed {seed}: {len(found)} plans, "
        f"unweighted {right[0]:.1f}, mean {right.mean():.1f}, least left "
        f"{right[left.argmin()]:.1f}, best {right.max():.1f}, rank correlation "
        f"{spearmanr(left, right)[0]:.2f}; {time.perf_counter() - start:.0f} s {plan_by_plan}"
    )


def main() -> None:
    """Print as they come."""
    parser = common.parser(__doc__)
    parser.add_argument("--only", nargs="+", default=sorted({name for name, _ in SETTINGS}))
    parser.add_argument("--budgets", nargs="+", type=float, help="those of each setting, if none")
    parser.add_argument("--architecture", nargs="+", default=[ARCHITECTURE])
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--draws", type=int, default=PLANS)
    parser.add_argument("--each", action="store_true", help="show every plan")
    asked = parser.parse_args()
    store = common.store(asked)
    torch.set_num_threads(1)
    for name in asked.only:
        own = asked.budgets or [budget for known, budget in SETTINGS if known == name]
        for architecture, budget, seed in product(asked.architecture, own, range(asked.seeds)):
            found = line(name, architecture, budget, seed, asked.draws, asked.each, store)
            print(found, flush=True)


if __name__ == "__main__":
    main()
