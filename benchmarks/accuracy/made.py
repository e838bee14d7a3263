"""What inputs made from norms are worth, by how many are made, how, and beside what.

``python -m benchmarks.accuracy.made``: figures of docs/decisions/2026-11-27-synthetic.md, of the
narrow ResNet and the first seed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch

import pleas_fx as pf
from benchmarks.accuracy import asked as common
from benchmarks.accuracy.ablations import ARCHITECTURE, Variation
from benchmarks.accuracy.evaluate import Tests
from benchmarks.accuracy.measure import Case, Setting, evaluated
from benchmarks.accuracy.scenarios import SCENARIOS
from benchmarks.accuracy.sources import calibration, given, sources
from benchmarks.accuracy.tasks import Store
from passes import synthesise

BUDGETS = (0.5, 1.0)
# Inputs for a source, learning rate, divergence that is enough; the first line is what is shipped.
WAYS = (
    (128, 0.1, 0.002), (256, 0.1, 0.002), (64, 0.1, 0.002), (128, 0.05, 0.002),
    (128, 0.1, 0.005), (128, 0.1, 0.01),
)  # fmt: skip
BESIDE = ("disjoint", "disjoint-free")
NUMBERS = (0, 64, 256)


def accuracies(name: str, made: int, store: Store) -> list[float]:
    """In percent, at both budgets, with so many inputs made for every source."""
    scenario = SCENARIOS[name]
    models, tests = sources(scenario, ARCHITECTURE, 0, store), Tests(scenario, store)
    options: dict[str, Any] = {"heads": scenario.heads, "synthetic": made, "progress": False}
    data, example = given(scenario, calibration(scenario, 0, store)), torch.zeros(2, 1, 28, 28)
    found = []
    for budget in BUDGETS:
        merged = pf.merge(models, data, flops=budget, example_inputs=example, **options).model
        case = Case(Setting(name, ARCHITECTURE, 0), "pleas", budget)
        found.append(100 * evaluated(case, merged, models, tests).accuracy)
    return found


def without(way: tuple[int, float, float], store: Store) -> tuple[list[float], float]:
    """No images: other classes, then the same task; and seconds a merge."""
    made, rate, enough = way
    start = time.perf_counter()
    with ExitStack() as stack:
        for constant, value in (("RATE", rate), ("ENOUGH", enough)):
            changed = Variation("", "", module=synthesise, constant=constant, value=value)
            stack.enter_context(changed.applied())
        found = [a for name in ("disjoint-0", "same-task-0") for a in accuracies(name, made, store)]
    return found, (time.perf_counter() - start) / len(found)


def lines(store: Store) -> Iterator[str]:
    """A line for each way, then for each number of made inputs beside images."""
    for way in WAYS:
        found, seconds = without(way, store)
        mean = sum(found) / len(found)
        yield f"no images, {way}: {_shown(found)}, mean {mean:.1f}, {seconds:.1f} s a merge"
    for name in BESIDE:
        for made in NUMBERS:
            yield f"{name}, {made} made beside: {_shown(accuracies(name, made, store))}"


def _shown(found: Sequence[float]) -> str:
    return " ".join(f"{accuracy:.1f}" for accuracy in found)


def main() -> None:
    """Print as they come."""
    parser = common.parser(__doc__)
    for line in lines(common.store(parser.parse_args())):
        print(line, flush=True)


if __name__ == "__main__":
    main()
