"""Layers as matrix products: the rows a layer's weights are multiplied with, and the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pleas_fx.ir import IntArray
from pleas_fx.rules.modules import CHANNELS_LAST


def is_transposed(module: nn.Module) -> bool:
    """Whether a layer is a transposed convolution."""
    return isinstance(module, nn.modules.conv._ConvTransposeNd)


def input_rows(module: nn.Module, x: Tensor, output: torch.Size, at: IntArray) -> Tensor:
    """(rows, groups, unknowns of a group): what produces the output positions ``at``.

    ``output`` is the layer's output shape (batch, channels, spatial…; or …, features).
    """
    if isinstance(module, nn.Linear):
        flat = x.reshape(-1, x.shape[-1])
        return flat[torch.from_numpy(at).to(x.device)].unsqueeze(1)
    layer: Any = module
    windows = _windows(layer, x)
    where = _indices(at, (output[0], *output[2:]), x.device)
    picking: tuple[Any, ...] = (where[0], slice(None), *where[1:])
    picked = windows[picking]
    return picked.reshape(len(at), layer.groups, -1)


def _windows(layer: Any, x: Tensor) -> Tensor:
    """A view (batch, channels, *output positions, *kernel)."""
    spatial = x.dim() - 2
    stride, x = _prepared(layer, x)
    for d in range(spatial):
        reach = (layer.kernel_size[d] - 1) * layer.dilation[d] + 1
        x = x.unfold(2 + d, reach, stride[d])
    steps: tuple[Any, ...] = tuple(slice(None, None, layer.dilation[d]) for d in range(spatial))
    return x[(..., *steps)]


def _prepared(layer: Any, x: Tensor) -> tuple[tuple[int, ...], Tensor]:
    """Padded input; a transposed convolution is a convolution of its zero-stuffed input."""
    if not is_transposed(layer):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        return layer.stride, F.pad(x, _padding(layer), mode=mode)
    spatial = x.dim() - 2
    stuffed_shape = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], layer.stride, strict=True)]
    stuffed = x.new_zeros(*x.shape[:2], *stuffed_shape)
    stuffed[(slice(None), slice(None), *(slice(None, None, s) for s in layer.stride))] = x
    pads: list[int] = []
    for d in reversed(range(spatial)):
        edge = layer.dilation[d] * (layer.kernel_size[d] - 1) - layer.padding[d]
        pads += [edge, edge + layer.output_padding[d]]
    return (1,) * spatial, F.pad(stuffed, pads)


def _padding(layer: Any) -> list[int]:
    """As the layer pads, before and behind, last dim first.

    Somebody may have set it since the constructor noted it for modes other than zeros.
    """
    if layer.padding_mode != "zeros":
        return list(layer._reversed_padding_repeated_twice)
    if layer.padding == "same":
        reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        return [n for size in reversed(reach) for n in (size // 2, size - size // 2)]
    sizes = (0,) * len(layer.kernel_size) if layer.padding == "valid" else layer.padding
    return [n for size in reversed(sizes) for n in (size, size)]


def output_rows(module: nn.Module, y: Tensor, at: IntArray) -> Tensor:
    """(rows, channels) of an output at positions; channels last for linear layers."""
    channel = y.dim() - 1 if isinstance(module, CHANNELS_LAST) else 1
    return rows_at(y.movedim(channel, -1), 1, at)


def rows_at(value: Tensor, last: int, at: IntArray) -> Tensor:
    """(rows, *the last dims): entries of a view at flat positions of its leading dims.

    A copy of the chosen rows only; flattening a permuted activation would copy all of it.
    """
    leading = value.shape[: value.dim() - last]
    if not leading:
        return value.unsqueeze(0)[torch.from_numpy(at).to(value.device)]
    return value[_indices(at, leading, value.device)]


def _indices(at: IntArray, shape: Sequence[int], device: torch.device) -> tuple[Tensor, ...]:
    """Flat positions as one index a dim."""
    found = np.unravel_index(at, tuple(shape))
    return tuple(torch.from_numpy(np.asarray(i)).to(device) for i in found)


def output_positions(module: nn.Module, shape: torch.Size) -> int:
    """How many rows an output of this shape has."""
    channel = len(shape) - 1 if isinstance(module, CHANNELS_LAST) else 1
    return int(np.prod(shape)) // int(shape[channel])


def to_matrix(module: nn.Module, weight: Tensor) -> Tensor:
    """(groups, outputs of a group, unknowns of a group) from a layer's weight."""
    if isinstance(module, nn.Linear):
        return weight.unsqueeze(0)
    layer: Any = module
    if is_transposed(module):
        spatial = tuple(range(2, weight.dim()))
        inputs, outputs = weight.shape[0] // layer.groups, weight.shape[1]
        split = weight.flip(spatial).reshape(layer.groups, inputs, outputs, *weight.shape[2:])
        return split.transpose(1, 2).reshape(layer.groups, outputs, -1)
    return weight.reshape(layer.groups, weight.shape[0] // layer.groups, -1)


def from_matrix(module: nn.Module, matrix: Tensor, like: Tensor) -> Tensor:
    """The inverse of :func:`to_matrix`, in the shape and dtype of ``like``."""
    if is_transposed(module):
        layer: Any = module
        spatial = tuple(range(2, like.dim()))
        inputs, outputs = like.shape[0] // layer.groups, like.shape[1]
        split = matrix.reshape(layer.groups, outputs, inputs, *like.shape[2:])
        return split.transpose(1, 2).reshape(like.shape).flip(spatial).to(like)
    return matrix.reshape(like.shape).to(like)
