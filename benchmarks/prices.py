"""Which prices of merging the planner needs: merges of more and less related pairs of networks.

    python -m benchmarks.prices

Small networks of the test zoo; the second of a pair is its own random weights, moved towards the
first's by a share, or both hold the same network of half the channels beside their own. Per set of
prices: predicted error, and the worst output's relative error.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

import pleas_fx as pf
from pleas_fx import planning
from tests.merging import outputs, worst
from tests.networks import NETWORKS, Network

Prices = tuple[tuple[float, float], ...]
ENDS: Prices = ((math.inf, 1.0), (1.0, math.inf))
SETS: dict[str, Prices] = {
    "1, 1.5": ((1.0, 1.0), (1.5, 1.0), *ENDS),
    "1.5": ((1.5, 1.0), *ENDS),
    "1": ((1.0, 1.0), *ENDS),
    "none": ENDS,
}
NAMES = ("resnet", "narrow_resnet", "vgg", "densenet", "mobilenet_v2")
INPUTS = 3  # channels of an image
BUDGETS = (("flops", 0.75), ("flops", 1.0), ("flops", 1.25), ("width", 1.0), ("width", 1.25))
CALIBRATION, TEST = 128, 64


def related(network: Network, share: float) -> tuple[nn.Module, nn.Module]:
    """Two networks; the second has a share of the first's weights."""
    first, second = network.make(0), network.make(1)
    with torch.no_grad():
        for own, other in zip(second.parameters(), first.parameters(), strict=True):
            own.lerp_(other, share)
    return first, second


def half_shared(network: Network) -> tuple[nn.Module, nn.Module]:
    """Two networks; the first half of every layer's channels is the same, and reads only itself."""
    first, second = network.make(0), network.make(1)
    with torch.no_grad():
        for own, other in zip(second.parameters(), first.parameters(), strict=True):
            half = len(own) // 2
            own[:half] = other[:half]
            if own.dim() > 1 and own.shape[1] > INPUTS:
                for weight in (own, other):
                    weight[:half, weight.shape[1] // 2 :] = 0.0
    return first, second


PAIRS: dict[str, Callable[[Network], tuple[nn.Module, nn.Module]]] = {
    **{str(share): partial(related, share=share) for share in (0.3, 0.6, 0.8)},
    "half": half_shared,
}


def measure(name: str, pair: str, budget: tuple[str, float]) -> str:
    """A line of the table."""
    network = NETWORKS[name]
    models = PAIRS[pair](network)
    calibration, test = network.batch(CALIBRATION, seed=3), network.batch(TEST, seed=9)
    expected = [outputs(model, test)[0] for model in models]
    size: dict[str, Any] = dict([budget])
    cells = []
    for prices in SETS.values():
        planning.MENUS["pleas"] = prices
        result = pf.merge(models, calibration, progress=False, **size)
        error = worst(outputs(result.model, test), expected)
        cells.append(f"{result.plan.predicted_error:.3f} / {error:.3f}")
    return f"| {name} | {pair} | {budget[0]} {budget[1]} | " + " | ".join(cells) + " |"


def main() -> None:
    """Print the table."""
    print("| network | related | budget | " + " | ".join(SETS) + " |")
    print("|---|---:|---|" + "---:|" * len(SETS))
    for name in NAMES:
        for pair in PAIRS:
            for budget in BUDGETS:
                print(measure(name, pair, budget), flush=True)


if __name__ == "__main__":
    main()
