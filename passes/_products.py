"""Convolutions with a kernel for every example as matrix products, for batches of any size.

Networks that compute kernels from their inputs (CondConv, Yang et al. 2019; StyleGAN2, Karras et
al. 2020) put the batch into the channels and convolve with as many groups; ONNX must know how many.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

CONVOLUTIONS: tuple[Any, ...] = (torch.conv1d, torch.conv2d, F.conv1d, F.conv2d)
ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")

Sizes = int | Sequence[int]


def as_products(network: fx.GraphModule) -> int:
    """In place: convolutions whose number of groups is computed; how many there are."""
    found = 0
    for node in list(network.graph.nodes):
        if node.op != "call_function" or node.target not in CONVOLUTIONS:
            continue
        given = dict(zip(ARGUMENTS, node.args, strict=False)) | node.kwargs
        if isinstance(given.get("groups"), fx.Node) and not isinstance(given.get("padding"), str):
            node.target, node.args, node.kwargs = grouped_product, (), given
            found += 1
    network.recompile()
    return found


def grouped_product(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Tensor:
    """(n, groups · i, *space) convolved with (groups · o, i, *kernel): products of its windows."""
    flat = weight.dim() == 3
    if flat:  # one row
        input, weight = input.unsqueeze(-2), weight.unsqueeze(-2)
    options = [
        _both(sizes, flat, blank) for sizes, blank in ((stride, 1), (padding, 0), (dilation, 1))
    ]
    inside, kernel = weight.shape[1], weight.shape[2:]
    n, _, *space = input.shape
    rows, columns = (_windows(*each) for each in zip(space, kernel, *options, strict=True))
    each = input.reshape(n * groups, inside, *space)
    read = F.unfold(each, tuple(kernel), options[2], options[1], options[0])
    matrices = weight.reshape(groups, -1, inside * kernel[0] * kernel[1])
    made = matrices @ read.reshape(n, groups, read.shape[1], -1)
    made = made.reshape((n, -1, columns) if flat else (n, -1, rows, columns))
    return made if bias is None else made + bias.reshape(-1, *[1] * (made.dim() - 2))


def _both(sizes: Sizes, flat: bool, blank: int) -> tuple[int, int]:
    """Of rows and of columns."""
    given = (sizes,) if isinstance(sizes, int) else tuple(sizes)
    if flat:
        return blank, given[0]
    return (given[0], given[-1])


def _windows(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """How many fit along one dim."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
