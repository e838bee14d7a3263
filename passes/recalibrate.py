"""Batch norm statistics from data: as a correction (Git Re-Basin, REPAIR), or as a restatement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from passes._norms import watched

Batch = tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Recalibrate:
    """Options of the pass."""

    name: str = "recalibrate"

    def run(self, module: fx.GraphModule, batches: Sequence[Batch]) -> None:
        recalibrate(module, batches)


def recalibrate(module: fx.GraphModule, batches: Sequence[Batch]) -> None:
    """Set every running statistic of ``module`` to its average over the batches, in place."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    tracking = [m for m in norms if m.track_running_stats]
    momenta = [m.momentum for m in tracking]
    for norm in tracking:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
        norm.train()
    with torch.inference_mode():
        for batch in batches:
            module(*batch)
    for norm, momentum in zip(tracking, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def restate(module: fx.GraphModule, batches: Sequence[Batch]) -> None:
    """Keep what norms see now as their statistics, and what they compute as it is, in place.

    Whoever goes on training then starts from what the network does.
    """
    sums: dict[nn.Module, Tensor] = {}

    def see(norm: nn.Module, values: Tensor) -> None:
        rows = values.transpose(0, 1).flatten(1).double()
        count = torch.full_like(rows[:, 0], rows.shape[1])
        sums[norm] = sums.get(norm, 0) + torch.stack((count, rows.sum(1), rows.square().sum(1)))

    with torch.inference_mode(), watched(module, see):
        for batch in batches:
            module(*batch)
    with torch.no_grad():
        for norm, (count, total, square) in sums.items():
            mean = total / count
            _restated(norm, mean, (square / count - mean.square()).clamp_min(0))


def _restated(norm: Any, mean: Tensor, variance: Tensor) -> None:
    if norm.weight is None or norm.bias is None:
        return
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    norm.bias += scale * (mean - norm.running_mean)
    norm.weight.copy_(scale * (variance + norm.eps).sqrt())
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)


def correct_statistics(
    module: fx.GraphModule, merged: dict[str, tuple[Tensor, Tensor, Tensor]]
) -> None:
    """Without data: means and variances of averaged channels from those of their sources.

    ``merged`` maps a norm's path to (means (sources, n), variances (sources, n), correlation (n)).
    """
    with torch.no_grad():
        for path, (means, variances, correlation) in merged.items():
            norm = module.get_submodule(path)
            assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
            deviation = variances.sqrt()
            sources = len(means)
            own = variances.sum(0)
            cross = deviation.sum(0).square() - own
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.copy_(means.mean(0))
            norm.running_var.copy_((own + correlation * cross) / sources**2)
