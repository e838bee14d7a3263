"""How the analysis of groups grows with the channels of a layer: python -m benchmarks.analysis.

Eight convolutions with batch norms on images of 8x8; seconds of one thread, beside a forward pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn

from passes.groups import groups
from passes.trace import trace

CHANNELS = (125, 250, 500, 1000, 2000)
LAYERS = 8


def network(channels: int) -> nn.Module:
    """Of equally wide layers."""
    layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1)]
    for _ in range(LAYERS):
        layers += [nn.BatchNorm2d(channels), nn.ReLU()]
        layers += [nn.Conv2d(channels, channels, 3, padding=1)]
    return nn.Sequential(*layers).eval()


def seconds(call: Callable[[], object]) -> float:
    """Of this thread, the better of two."""
    times = []
    for _ in range(2):
        start = time.thread_time()
        call()
        times.append(time.thread_time() - start)
    return min(times)


def main() -> None:
    """Print a row a width."""
    torch.set_num_threads(1)
    images = torch.randn(2, 3, 8, 8)
    print("| channels | forward, s | groups, s |\n|---:|---:|---:|")
    for channels in CHANNELS:
        program = trace(network(channels), (images,))
        with torch.no_grad():
            forward = seconds(lambda p=program: p.module(images))  # type: ignore[misc]
        found = seconds(lambda p=program: groups(p))  # type: ignore[misc]
        print(f"| {channels} | {forward:.3f} | {found:.3f} |", flush=True)


if __name__ == "__main__":
    main()
