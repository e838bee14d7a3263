"""Normalisations: affine parameters and statistics move with the channels they scale."""

from __future__ import annotations

import torch
from torch import Tensor

from pleas_fx.labels import Call, Coordinates, Labeller, Rule, pattern
from pleas_fx.rules.pointwise import combine


def batch_norm(ctx: Labeller, call: Call) -> list[Coordinates]:
    """``native_batch_norm(x, weight, bias, mean, var, …)`` and its variants, channels on dim 1."""
    return _per_channel(ctx, call, [a for a in call.args[1:5] if isinstance(a, Tensor)])


def group_norm(ctx: Labeller, call: Call) -> list[Coordinates]:
    """``native_group_norm(x, weight, bias, n, c, hw, groups, eps)``: groups are blocks."""
    groups, channels = int(call.args[6]), int(call.args[4])
    affine = [a for a in call.args[1:3] if isinstance(a, Tensor)]
    result = _per_channel(ctx, call, affine)
    for labels in result[0]:
        if 1 in pattern(labels) and 1 < groups < channels:
            flat = labels.narrow(0, 0, 1).movedim(1, 0).reshape(groups, -1)
            ctx.nest(flat, ctx.fresh(groups).view(-1, 1))
    if groups == 1:
        ctx.couple()
    return result


def _per_channel(ctx: Labeller, call: Call, parameters: list[Tensor]) -> list[Coordinates]:
    x, out = call.args[0], call.outs[0]
    shape = [1, -1] + [1] * (x.dim() - 2)
    channels = sorted((c for c in ctx.of(x) if 1 in pattern(c)), key=lambda c: len(pattern(c)))
    for parameter in parameters:
        for labels in ctx.of(parameter):
            if channels:
                ctx.tie(channels[0], labels.reshape(shape))
            else:
                ctx.pin(labels, "normalises channels without labels")
    results: list[Coordinates] = [[] for _ in call.outs]
    results[0] = [c.expand(out.shape) for c in ctx.of(x)]
    return results


def layer_norm(ctx: Labeller, call: Call) -> list[Coordinates]:
    """``native_layer_norm(x, shape, weight, bias, eps)`` over the last dims."""
    x, normalised = call.args[0], len(call.args[1])
    affine = [a for a in call.args[2:4] if isinstance(a, Tensor)]
    dims = set(range(x.dim() - normalised, x.dim()))
    results: list[Coordinates] = [[] for _ in call.outs]
    results[0] = combine(ctx, [x, *affine], call.outs[0])
    for labels in ctx.of(x):
        nest_rows(ctx, labels, dims)
    return results


def nest_rows(ctx: Labeller, labels: Tensor, dims: set[int]) -> Tensor | None:
    """Labels mixed over ``dims`` stay together where they also vary along other dims.

    Returns the block labels (1 along ``dims``), or None when the labels are mixed as a whole.
    """
    varying = set(pattern(labels))
    if not varying & dims:
        return labels
    rest = sorted(varying - dims)
    if not rest:
        ctx.couple()
        return None
    shape = [labels.shape[d] if d in rest else 1 for d in range(labels.dim())]
    first = labels
    for dim in dims:
        first = first.narrow(dim, 0, 1)
    blocks = ctx.fresh(int(torch.tensor(shape).prod())).view(shape)
    ctx.nest(labels, blocks)
    return blocks


def weight_norm(ctx: Labeller, call: Call) -> list[Coordinates]:
    """``_weight_norm_interface(direction, length, dim)``: the length has the labels of ``dim``."""
    direction, length = call.args[0], call.args[1]
    return [combine(ctx, [direction, length], call.outs[0]), list(ctx.of(length))]


def softmax(ctx: Labeller, call: Call) -> list[Coordinates]:
    """Softmax keeps labels; along a labelled dim it mixes the channels."""
    x = call.args[0]
    dim = int(call.args[1]) % x.dim()
    for labels in ctx.of(x):
        nest_rows(ctx, labels, {dim})
    return [list(ctx.of(x)) for _ in call.outs]


NORMALISATION: dict[str, Rule] = {
    **dict.fromkeys(
        """native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training
        cudnn_batch_norm miopen_batch_norm _batch_norm_no_update _batch_norm_with_update
        batch_norm""".split(),
        batch_norm,
    ),
    "native_group_norm": group_norm,
    "native_layer_norm": layer_norm,
    "_weight_norm_interface": weight_norm,
    "_softmax": softmax,
    "_safe_softmax": softmax,
    "_log_softmax": softmax,
}
