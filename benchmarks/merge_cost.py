"""What a merge costs beside the bare forward passes of the networks in it.

    python -m benchmarks.merge_cost [NAME …]

Two random torchvision networks and 64 random images of 3x224x224. Seconds are those of this
machine; compare only the ratios, which are taken within one run.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor, nn

import pleas_fx as pf
from pleas_fx.ir import Report

IMAGES, BATCH, SIZE = 64, 32, 224
REPEATS = 5
PRODUCT = 2048  # size of the matrix product that the machine's rate is taken from


@dataclass(frozen=True, slots=True)
class Run:
    """Seconds of one merge and of what surrounds it."""

    bare: float  # the three networks once, in batches of BATCH
    merge: float
    floor: float  # what no merge of this kind can do without, at the rates of the same run
    report: Report

    @property
    def ratio(self) -> float:
        return self.merge / self.bare


def network(name: str, seed: int) -> nn.Module:
    """A torchvision network whose norms aren't the identity."""
    torch.manual_seed(seed)
    model: nn.Module = torchvision.models.get_model(name).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0.0, 0.2)
                module.running_mean.normal_(0.0, 0.2)
                torch.as_tensor(module.running_var).uniform_(0.5, 1.5)
    return model


def seconds(action: Callable[[], object]) -> float:
    """How long an action takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def forward(models: Sequence[nn.Module], images: Tensor) -> None:
    """All images once through every model, in batches."""
    with torch.inference_mode():
        for model in models:
            for batch in images.split(BATCH):
                model(batch)


def rate(dtype: torch.dtype) -> float:
    """FLOPs a second of this machine's matrix product."""
    a = torch.randn(PRODUCT, PRODUCT, dtype=dtype)
    return 2.0 * PRODUCT**3 / min(seconds(lambda: a @ a) for _ in range(3))


def floor(sources: float, merged: float, report: Report) -> float:
    """Every network once, and the normal equations.

    Half of a Gram matrix in float32, its Cholesky factor in float64; everything else is free.
    """
    gram = sum(f.rows * f.unknowns**2 for f in report.layers if f.rows >= f.unknowns)
    factor = sum(f.unknowns**3 / 3 for f in report.layers if f.rows >= f.unknowns)
    solved = gram / rate(torch.float32) + factor / rate(torch.float64)
    return sources + merged + solved


def measure(models: Sequence[nn.Module], images: Tensor) -> Run:
    """A merge, and right after it the bare passes."""
    start = time.perf_counter()
    result = pf.merge(models, images, width=1.25, progress=False)
    merge = time.perf_counter() - start
    sources = seconds(lambda: forward(models, images))
    merged = seconds(lambda: forward([result.model], images))
    least = floor(sources, merged, result.report)
    return Run(sources + merged, merge, least, result.report)


def line(name: str) -> str:
    """A line of the table: the run with the median ratio, and the range of the ratios."""
    models = [network(name, seed) for seed in (0, 1)]
    images = torch.randn(IMAGES, 3, SIZE, SIZE)
    runs = sorted((measure(models, images) for _ in range(REPEATS)), key=lambda run: run.ratio)
    run, ratios = runs[REPEATS // 2], [r.ratio for r in runs]
    least = statistics.median(r.floor / r.bare for r in runs)
    parts = ", ".join(f"{k} {v:.1f}" for k, v in run.report.seconds.items())
    return (
        f"| {name} | {run.bare:.1f} | {run.merge:.1f} | {run.ratio:.1f} ({ratios[0]:.1f} to "
        f"{ratios[-1]:.1f}) | {least:.1f} | {run.report.peak_bytes / 2**20:.0f} | {parts} |"
    )


def main(names: Sequence[str]) -> None:
    """Print the table."""
    print(
        "| networks | three bare passes, s | merge, s | ratio | floor | activations held, MiB "
        "| passes, s |"
    )
    print("|---|---:|---:|---:|---:|---:|---|")
    for name in names or ("resnet18", "resnet50"):
        print(line(name), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
