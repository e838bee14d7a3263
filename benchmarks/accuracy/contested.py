"""Whether what a plan leaves of the outputs tells how good it is: plans of one budget, all fitted.

``python -m benchmarks.accuracy.contested``: figures of docs/decisions/2026-11-27-contest.md, of the
narrow ResNet and two seeds. Every setting's plan, one for each source that counts twice and 14 with
weights of groups drawn at random are fitted to all images and tested.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn

import pleas_fx as pf
from benchmarks.accuracy.ablations import ARCHITECTURE
from benchmarks.accuracy.evaluate import Tests
from benchmarks.accuracy.measure import Case, Setting, evaluated
from benchmarks.accuracy.run import FOLDER
from benchmarks.accuracy.scenarios import SCENARIOS
from benchmarks.accuracy.sources import calibration, given, sources
from benchmarks.accuracy.tasks import Store
from pleas_fx import compiler
from pleas_fx.candidates import Candidate, copied
from pleas_fx.contest import SPREAD, Emphasis
from pleas_fx.ir import GroupId

PLANS, SEEDS = 14, (0, 1)
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
    models: Sequence[nn.Module], data: object, **options: Any
) -> list[tuple[float, nn.Module]]:
    """What trials of plans left, and the networks fitted to all images; the default's first."""
    found: list[tuple[float, nn.Module]] = []
    fittings: list[compiler.Fitting] = []
    contested = compiler.contested

    def watched(chosen: Candidate, fitting: compiler.Fitting, *rest: Any) -> Any:
        fittings.append(fitting)
        return contested(chosen, fitting, *rest)

    def everyone(
        first: Any, count: int, groups: Sequence[GroupId], attempt: Any, left: Any, **_: Any
    ) -> Any:
        tried = [first, *(attempt(emphasis) for emphasis in emphases(count, groups))]
        kept = [one for one in tried if one is not None]
        found.extend((left(one), _fitted(fittings[0], one[0])) for one in kept)
        return first

    with (
        mock.patch.object(compiler, "contest", everyone),
        mock.patch.object(compiler, "contested", watched),
    ):
        pf.merge(models, data, progress=False, trials=PLANS, **options)
    return found


def emphases(count: int, groups: Sequence[GroupId]) -> Iterator[Emphasis]:
    """Every source twice, and groups as the contest draws them."""
    for source in range(count):
        yield Emphasis(tuple(2.0 if s == source else 1.0 for s in range(count)))
    rng = np.random.default_rng(5)
    for _ in range(PLANS):
        drawn = np.exp(SPREAD * rng.standard_normal(len(groups))).tolist()
        yield Emphasis(groups=dict(zip(groups, drawn, strict=True)))


def _fitted(fitting: compiler.Fitting, candidate: Candidate) -> nn.Module:
    whole, _ = fitting.run(copied(candidate))
    return whole.planned[1].module


def line(name: str, budget: float, seed: int, store: Store) -> str:
    """One setting."""
    scenario, start = SCENARIOS[name], time.perf_counter()
    models, tests = sources(scenario, ARCHITECTURE, seed, store), Tests(scenario, store)
    case = Case(Setting(name, ARCHITECTURE, seed), "pleas", budget)
    accuracy: Callable[[nn.Module], float] = lambda m: (  # noqa: E731
        100 * evaluated(case, m, models, tests).accuracy
    )
    found = plans(
        models,
        given(scenario, calibration(scenario, seed, store)),
        flops=budget,
        heads=scenario.heads,
        example_inputs=torch.zeros(2, 1, 28, 28),
    )
    left = np.array([own for own, _ in found])
    right = np.array([accuracy(model) for _, model in found])
    return (
        f"{name} {budget:g}x, seed {seed}: {len(found)} plans, unweighted {right[0]:.1f}, mean "
        f"{right.mean():.1f}, least left {right[left.argmin()]:.1f}, best {right.max():.1f}, rank "
        f"correlation {spearmanr(left, right)[0]:.2f}; {time.perf_counter() - start:.0f} s"
    )


def main() -> None:
    """Print as they come."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--data", type=Path, default=None)
    asked = parser.parse_args()
    store = Store(asked.folder / "networks", asked.data or asked.folder / "data")
    torch.set_num_threads(1)
    for name, budget in SETTINGS:
        for seed in SEEDS:
            print(line(name, budget, seed, store), flush=True)


if __name__ == "__main__":
    main()
