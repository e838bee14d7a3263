"""What a merge costs beside the bare forward passes of the networks in it.

    python -m benchmarks.merge_cost [NAME …]

Two random torchvision networks and 64 random images of 3x224x224. Seconds are those of this
machine; compare only the ratio, which is taken within one run.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import torch
import torchvision
from torch import Tensor, nn

import pleas_fx as pf
from pleas_fx.ir import Report

IMAGES, BATCH, SIZE = 64, 32, 224
REPEATS = 3


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


def forward(model: nn.Module, images: Tensor) -> None:
    """All images once, in batches."""
    with torch.inference_mode():
        for batch in images.split(BATCH):
            model(batch)


def measure(name: str) -> str:
    """A line of the table: bare passes, merge, ratio, and the largest passes."""
    models = [network(name, seed) for seed in (0, 1)]
    images = torch.randn(IMAGES, 3, SIZE, SIZE)
    runs = [_run(models, images) for _ in range(REPEATS)]
    ratios = [merge / bare for bare, merge, _ in runs]
    bare, merge, report = sorted(runs, key=lambda run: run[1] / run[0])[REPEATS // 2]
    parts = ", ".join(f"{k} {v:.1f}" for k, v in report.seconds.items())
    return (
        f"| {name} | {bare:.1f} | {merge:.1f} | {merge / bare:.1f} ({min(ratios):.1f} to "
        f"{max(ratios):.1f}) | {report.peak_bytes / 2**20:.0f} | {parts} |"
    )


def _run(models: Sequence[nn.Module], images: Tensor) -> tuple[float, float, Report]:
    """Seconds of the bare passes and of the merge, one right after the other."""
    start = time.perf_counter()
    result = pf.merge(models, images, width=1.25, progress=False)
    merge = time.perf_counter() - start
    start = time.perf_counter()
    for model in (*models, result.model):
        forward(model, images)
    return time.perf_counter() - start, merge, result.report


def main(names: Sequence[str]) -> None:
    """Print the table."""
    print(
        "| networks | three bare passes, s | merge, s | ratio | activations held, MiB | passes, s |"
    )
    print("|---|---:|---:|---:|---:|---|")
    for name in names or ("resnet18", "resnet50"):
        print(measure(name), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
