"""How many rows a layer is fitted on: accuracy of the fixtures' merges, over seeds.

    python -m benchmarks.rows

Task average on the test images with separate heads, in percent, at 0.5x and 1.0x FLOPs.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

import pleas_fx as pf
from passes import _rows
from pleas_fx import demo

SETTINGS = ((2, 256), (4, 256), (8, 256), (16, 256), (8, 4096), (16, 4096), (32, 4096))
BUDGETS = (0.5, 1.0)
SEEDS = 5


def accuracy(images: demo.Images, budget: float, seed: int) -> float:
    """Of one merge."""
    result = pf.merge(
        images.sources, torch.cat(images.calibration), flops=budget, seed=seed, progress=False
    )
    with torch.no_grad():
        outputs = [
            torch.cat(p) for p in zip(*map(result.model, images.test.split(500)), strict=True)
        ]
    return 100 * demo.task_average(outputs, images.labels)


def main() -> None:
    """Print the table."""
    images = demo.fixtures()
    print("| rows an unknown | at least | FLOPs | mean | seeds |")
    print("|---:|---:|---:|---:|---|")
    for per_unknown, fewest in SETTINGS:
        setting = _wanted(per_unknown, fewest)
        _rows.Rows.wanted = setting  # type: ignore[assignment, method-assign]
        for budget in BUDGETS:
            found = [accuracy(images, budget, seed) for seed in range(SEEDS)]
            shown = ", ".join(f"{value:.2f}" for value in found)
            mean = statistics.mean(found)
            print(f"| {per_unknown} | {fewest} | {budget} | {mean:.2f} | {shown} |", flush=True)


def _wanted(per_unknown: int, fewest: int) -> Callable[[_rows.Rows, int], int]:
    def wanted(_: _rows.Rows, unknowns: int) -> int:
        return max(per_unknown * unknowns, fewest)

    return wanted


if __name__ == "__main__":
    main()
