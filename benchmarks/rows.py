"""How many rows a layer is fitted on: accuracy of the fixtures' merges, over seeds.

    python -m benchmarks.rows

Task average on the test images with separate heads, in percent, at 0.5x and 1.0x FLOPs.
"""

from __future__ import annotations

import statistics

import torch

from passes import _targets
from pleas_fx import demo
from pleas_fx.budget import Budget
from pleas_fx.calibration import collect
from pleas_fx.compiler import compile_models
from pleas_fx.request import Clock, Options

SETTINGS = ((2, 256), (4, 256), (8, 256), (16, 256), (8, 4096), (16, 4096), (32, 4096))
BUDGETS = (0.5, 1.0)
SEEDS = 5


def accuracy(images: demo.Images, budget: float, seed: int, per_unknown: int) -> float:
    """Of one merge."""
    options = Options(Budget(flops=budget), seed=seed, rows_per_unknown=per_unknown)
    data = collect(torch.cat(images.calibration))
    example = (images.calibration[0][:2],)
    compiled = compile_models(images.sources, example, data, options, Clock())
    with torch.no_grad():
        parts = [compiled.rewritten.module(part) for part in images.test.split(500)]
    outputs = [torch.cat(part) for part in zip(*parts, strict=True)]
    return 100 * demo.task_average(outputs, images.labels)


def main() -> None:
    """Print the table."""
    images = demo.fixtures()
    print("| rows an unknown | at least | FLOPs | mean | seeds |")
    print("|---:|---:|---:|---:|---|")
    for per_unknown, fewest in SETTINGS:
        _targets.FEWEST_ROWS = fewest
        for budget in BUDGETS:
            found = [accuracy(images, budget, seed, per_unknown) for seed in range(SEEDS)]
            shown = ", ".join(f"{value:.2f}" for value in found)
            mean = statistics.mean(found)
            print(f"| {per_unknown} | {fewest} | {budget} | {mean:.2f} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
