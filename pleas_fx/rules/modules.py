"""Parametric modules: which axis of the value and of the weight is which, and how to resize.

One table for every module type that a merge rebuilds. A module that isn't listed and has
parameters is opaque: its channels stay whole.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Contraction:
    """A layer that sums over channels. ``channel``: the value's channel dim (-1: the last)."""

    out_dim: int  # of the weight
    in_dim: int
    channel: int
    spatial: int


@dataclass(frozen=True, slots=True)
class Channelwise:
    """A layer with parameters per channel; ``resize`` sets its size attributes."""

    channel: int
    resize: Callable[[Any, int, int], None]  # module, channels, channels of the source


CONTRACTIONS: dict[type[nn.Module], Contraction] = {
    nn.Linear: Contraction(0, 1, -1, 0),
    nn.Conv1d: Contraction(0, 1, 1, 1),
    nn.Conv2d: Contraction(0, 1, 1, 2),
    nn.Conv3d: Contraction(0, 1, 1, 3),
    nn.ConvTranspose1d: Contraction(1, 0, 1, 1),
    nn.ConvTranspose2d: Contraction(1, 0, 1, 2),
    nn.ConvTranspose3d: Contraction(1, 0, 1, 3),
}


def _features(module: Any, channels: int, _: int) -> None:
    module.num_features = channels


def _groups(module: Any, channels: int, before: int) -> None:
    if module.num_groups > 1:
        module.num_groups = max(1, round(module.num_groups * channels / before))
    module.num_channels = channels


def _shape(module: Any, channels: int, _: int) -> None:
    module.normalized_shape = (*module.normalized_shape[:-1], channels)


def _parameters(module: Any, channels: int, _: int) -> None:
    module.num_parameters = channels


CHANNELWISE: dict[type[nn.Module], Channelwise] = {
    nn.BatchNorm1d: Channelwise(1, _features),
    nn.BatchNorm2d: Channelwise(1, _features),
    nn.BatchNorm3d: Channelwise(1, _features),
    nn.InstanceNorm1d: Channelwise(1, _features),
    nn.InstanceNorm2d: Channelwise(1, _features),
    nn.InstanceNorm3d: Channelwise(1, _features),
    nn.GroupNorm: Channelwise(1, _groups),
    nn.LayerNorm: Channelwise(-1, _shape),
    nn.RMSNorm: Channelwise(-1, _shape),
    nn.PReLU: Channelwise(1, _parameters),
}


CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.RMSNorm)


def contraction(module: nn.Module) -> Contraction | None:
    """The entry of a contraction, None for any other module (subclasses don't count)."""
    return CONTRACTIONS.get(type(module))


def channelwise(module: nn.Module) -> Channelwise | None:
    """The entry of a per-channel layer, None for any other module."""
    return CHANNELWISE.get(type(module))


def is_depthwise(module: nn.Module) -> bool:
    """One filter a channel: its output channels are its input channels."""
    groups = int(getattr(module, "groups", 1))
    return groups > 1 and groups == getattr(module, "in_channels", 0) == module.out_channels


def is_positionwise(module: nn.Module) -> bool:
    """A per-channel layer that computes each position, along all other dims, by itself."""
    mixing = isinstance(module, (nn.GroupNorm, nn.modules.instancenorm._InstanceNorm))
    return type(module) in CHANNELWISE and not mixing and len(_normalised(module)) <= 1


def _normalised(module: nn.Module) -> tuple[int, ...]:
    return tuple(getattr(module, "normalized_shape", ()))


def running_map(norm: Any) -> tuple[Tensor, Tensor]:
    """Scale and shift of a batch norm in eval mode, float64."""
    deviation = (norm.running_var.double() + norm.eps).sqrt()
    scale = (norm.weight.detach() if norm.affine else 1.0) / deviation
    shift = norm.bias.detach() if norm.affine else 0.0
    return scale, shift - norm.running_mean * scale


def resized_contraction(module: nn.Module, inputs: int, outputs: int, groups: int) -> nn.Module:
    """A copy of a layer with other channel counts; its weight and bias are to be set."""
    replaced = {id(p): p for p in (module.weight, module.bias)}  # too large to copy for nothing
    result: Any = copy.deepcopy(module, replaced)
    if isinstance(module, nn.Linear):
        result.in_features, result.out_features = inputs, outputs
        return _typed(result)
    result.in_channels, result.out_channels, result.groups = inputs, outputs, groups
    return _typed(result)


def resized_channelwise(
    module: nn.Module, entry: Channelwise, channels: int, before: int
) -> nn.Module:
    """A copy of a per-channel layer with another number of channels."""
    result = copy.deepcopy(module)
    entry.resize(result, channels, before)
    return result


def _typed(module: Any) -> nn.Module:
    result: nn.Module = module
    return result
