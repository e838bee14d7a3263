"""Attention at width 1, fitted: two networks with other random weights, merged with and without.

python -m benchmarks.zoo.attention: how many layers least squares solve, and how far outputs are
from the sources' on inputs that nothing was fitted to, beside permuted and averaged weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import pleas_fx as pf
from benchmarks.zoo import models
from benchmarks.zoo.randomise import randomise
from benchmarks.zoo.run import DOCS, load

NAMES = (
    "timm:vit_tiny_patch16_224",
    "timm:swin_tiny_patch4_window7_224",
    "timm:convnext_atto",
    "timm:maxvit_pico_rw_256",
    "timm:coatnet_pico_rw_224",
)
CALIBRATION, HELD_OUT = 16, 4


def error(merged: nn.Module, sources: list[nn.Module], images: Tensor) -> float:
    """Norm of the difference over the norm, in the mean over sources."""
    with torch.no_grad():
        found = merged(images)
        pairs = [(own, source(images)) for own, source in zip(found, sources, strict=True)]
    return sum(float((a - b).norm() / b.norm()) for a, b in pairs) / len(pairs)


def row(name: str) -> str:
    """A line of the table."""
    shape = tuple(load(DOCS / "coverage.json")[name]["shape"])
    (images,) = models.example(shape, CALIBRATION, seed=0)
    (others,) = models.example(shape, HELD_OUT, seed=1)
    sources = [models.build(name).eval() for _ in range(2)]
    for seed, model in enumerate(sources):
        randomise(model, (images,), seed)
    fitted = pf.merge(sources, images, width=1.0, progress=False, synthetic=0)
    averaged = pf.merge(sources, images, width=1.0, method="permute", progress=False)
    solved = sum(layer.status in ("cholesky", "answers") for layer in fitted.report.layers)
    errors = [error(r.model, sources, others) for r in (fitted, averaged)]
    return (
        f"| {name} | {solved} of {len(fitted.report.layers)} | {errors[0]:.3f} | {errors[1]:.3f} |"
    )


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print("| network | layers solved | fitted | permuted and averaged |\n|---|---:|---:|---:|")
    for name in NAMES:
        print(row(name), flush=True)


if __name__ == "__main__":
    main()
