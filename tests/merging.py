"""What the oracle tests share: sources, merges and relative errors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import pleas_fx as pf
from tests.networks import NETWORKS, Inputs, Network

FEW = 24  # calibration examples: enough for mechanics
NAMES = sorted(NETWORKS)


def precise(network: Network, *seeds: int) -> list[nn.Module]:
    """Float64 networks of one architecture: errors of rounding are then of order 1e-15."""
    return [network.make(seed).double() for seed in seeds]


def doubled(inputs: Inputs) -> Inputs:
    """Floating inputs in float64."""
    return tuple(x.double() if x.is_floating_point() else x for x in inputs)


def outputs(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Every output tensor, in order."""
    with torch.no_grad():
        return [t for t in tree_leaves(model(*inputs)) if isinstance(t, Tensor)]


def of_images(model: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
    """Every output, computed in batches whose activations stay in a processor's cache."""
    parts = [outputs(model, (batch,)) for batch in images.split(50)]
    return tuple(torch.cat(own) for own in zip(*parts, strict=True))


def worst(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest relative error (norm over norm) of any output."""
    pairs = zip(found, expected, strict=True)
    return max(float((a - b).double().norm() / b.double().norm()) for a, b in pairs)


def calibration(name: str, seed: int = 5) -> list[tuple[Tensor, ...]]:
    """A few batches for a network of the zoo."""
    return [NETWORKS[name].batch(FEW // 2, seed=seed + k) for k in range(2)]


def merge(name: str, models: Sequence[nn.Module], **options: object) -> pf.MergeResult:
    """Merge on a few examples of the models' precision, in silence."""
    batches = calibration(name)
    if next(models[0].parameters()).dtype == torch.float64:
        batches = [doubled(batch) for batch in batches]
    return pf.merge(models, batches, progress=False, **options)  # type: ignore[arg-type]


def clone(model: nn.Module) -> dict[str, Tensor]:
    """A copy of everything a model holds."""
    return {key: value.clone() for key, value in model.state_dict().items()}
