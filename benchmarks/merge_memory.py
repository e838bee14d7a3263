"""How much memory a merge takes beside the networks that it is given.

    python -m benchmarks.merge_memory [NAME …]

Two random torchvision networks and eight random images of 64x64 (224x224 for transformers), 1.25
times one source's FLOPs; then the export of what comes out. Each network in its own process.
Figures are bytes, and so the same on every machine but for the allocator's rounding.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

import pleas_fx as pf

NAMES = ("resnet50", "resnet101", "convnext_small", "vit_b_32")
EXAMPLES, SIZE, TOKENS = 8, 64, 224
MIB = 2**20

Row = tuple[str, float, float, float]


def peak() -> float:
    """The most that this process has held so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def size(model: nn.Module) -> float:
    """MiB of a network's tensors."""
    return float(sum(t.numel() * t.element_size() for t in model.state_dict().values())) / MIB


def merge(sources: Sequence[nn.Module], images: Tensor) -> nn.Module:
    """As it is measured."""
    return pf.merge(sources, images, flops=1.25, synthetic=0, progress=False).model


def export(network: nn.Module, images: Tensor) -> None:
    """To a file that is dropped."""
    with tempfile.TemporaryDirectory() as folder:
        pf.export_onnx(network, (images,), Path(folder) / "network.onnx")


def load_libraries() -> None:
    """What is imported late isn't a network's memory."""
    tiny = [nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)) for _ in range(2)]
    images = torch.randn(EXAMPLES, 3, 8, 8)
    export(merge(tiny, images), images)


def measure(name: str) -> Row:
    """One source's MiB; what merging and exporting take beyond two sources, in sources."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    load_libraries()
    sources = [torchvision.models.get_model(name).eval() for _ in range(2)]
    side = TOKENS if name.startswith("vit") else SIZE
    images = torch.randn(EXAMPLES, 3, side, side)
    own, before = size(sources[0]), peak()
    merged = merge(sources, images)
    merging = peak()
    sources.clear()
    export(merged, images[:2])
    return name, own, (merging - before) / own, (peak() - before) / own


def measured(names: Sequence[str]) -> list[Row]:
    """Each in a process of its own, one after the other."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, maxtasksperchild=1) as pool:
        return pool.map(measure, names, chunksize=1)


def main() -> None:
    """A table on the terminal."""
    print("| networks | a source, MiB | merging takes | and exporting, at most |")
    print("|---|---:|---:|---:|")
    for name, own, merging, both in measured(sys.argv[1:] or NAMES):
        print(f"| {name} | {own:.0f} | {merging:.1f} sources | {both:.1f} sources |", flush=True)


if __name__ == "__main__":
    main()
