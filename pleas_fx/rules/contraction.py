"""Contractions: convolutions and matrix products sum over one labelled index."""

from __future__ import annotations

from collections.abc import Set

import torch
from torch import Tensor

from pleas_fx.labels import NONE, Call, Coordinates, Labeller, Refused, Rule, compact, pattern
from pleas_fx.rules.pointwise import combine, constant_along
from pleas_fx.rules.reasons import MULTIPLIED, SLIDES, SUMMED, SUMMED_BOTH


def convolution(ctx: Labeller, call: Call) -> list[Coordinates]:
    """``convolution(x, w, b, …, transposed, …, groups)``, any number of spatial dims.

    Labels along the spatial dims are tied into one class a channel (the kernel treats all
    positions alike), but where the kernel is a single position they stay what they are. A grouped
    convolution makes blocks: its groups may be exchanged as wholes.
    """
    x, weight, bias = call.args[0], call.args[1], call.arg(2, "bias")
    transposed, groups = bool(call.args[6]), int(call.args[8])
    out = call.outs[0]
    _pin_kernel(ctx, weight)
    still = _still_dims(call)
    beside = [compact(c).expand(out.shape) for c in ctx.of(x) if _stays(c, still)]
    channels = _input_channels(ctx, x, still)
    if groups == 1:
        labels = _dense(ctx, weight, channels, transposed)
    elif groups == x.shape[1] and weight.shape[1] == 1 and out.shape[1] == x.shape[1]:
        labels = _depthwise(ctx, weight, channels)
    else:
        labels = _grouped(ctx, weight, channels, groups, transposed)
    if labels is None:
        _pin_all(ctx, bias, "bias of channels without labels")
        return [beside]
    for coordinate in ctx.of(bias):
        ctx.tie(coordinate, labels)
    shape = [1, -1] + [1] * (out.dim() - 2)
    return [[labels.view(shape).expand(out.shape), *beside]]


def deformable(ctx: Labeller, call: Call) -> list[Coordinates]:
    """``deform_conv2d(x, weight, offset, mask, bias, …)`` (Dai et al. 2017): places keep theirs."""
    x, weight, offset, mask, bias = call.args[:5]
    groups, places = call.args[11:13]
    if groups != 1 or places != 1:
        raise Refused("a deformable convolution in groups")
    for tensor in (offset, mask):
        _pin_all(ctx, tensor, "says where to sample")
    _pin_kernel(ctx, weight)
    labels = _dense(ctx, weight, _input_channels(ctx, x, set()), transposed=False)
    if labels is None:
        _pin_all(ctx, bias, "bias of channels without labels")
        return [[]]
    for coordinate in ctx.of(bias):
        ctx.tie(coordinate, labels)
    return [[labels.view(1, -1, 1, 1).expand(call.outs[0].shape)]]


def _still_dims(call: Call) -> set[int]:
    """Spatial dims along which every output position reads the same position of the input."""
    weight, stride, padding = call.args[1], call.args[3], call.args[4]
    return {
        dim
        for dim in range(2, weight.dim())
        if weight.shape[dim] == 1
        and call.args[0].shape[dim] == call.outs[0].shape[dim]
        and stride[min(dim - 2, len(stride) - 1)] == 1
        and padding[min(dim - 2, len(padding) - 1)] == 0
    }


def _stays(labels: Tensor, still: Set[int]) -> bool:
    varying = pattern(labels)
    return bool(varying) and still >= set(varying)


def _pin_kernel(ctx: Labeller, weight: Tensor) -> None:
    for labels in ctx.of(weight):
        if any(dim >= 2 for dim in pattern(labels)):
            ctx.pin(labels, "position in a convolution kernel", kernel=True)


def _pin_all(ctx: Labeller, tensor: object, reason: str) -> None:
    for labels in ctx.of(tensor):
        ctx.pin(labels, reason)


def _input_channels(ctx: Labeller, x: Tensor, still: Set[int]) -> Tensor | None:
    """One label an input channel, or None."""
    found: Tensor | None = None
    for labels in ctx.of(x):
        varying = pattern(labels)
        if _stays(labels, still):
            continue
        if 1 in varying and found is None:
            found = ctx.flatten(labels, [d for d in range(x.dim()) if d != 1], 1)
        else:
            ctx.pin(labels, SLIDES)
    return found


def _axis(ctx: Labeller, weight: Tensor, dim: int) -> Tensor | None:
    """The labels of one of the two channel axes of a weight."""
    labels = _coordinate(ctx, weight, dim)
    if labels is None:
        return None
    return ctx.flatten(labels, [d for d in range(weight.dim()) if d != dim], dim)


def _coordinate(ctx: Labeller, weight: Tensor, dim: int) -> Tensor | None:
    varying = [c for c in ctx.of(weight) if dim in pattern(c)]
    return min(varying, key=lambda c: len(pattern(c)), default=None)


def _axes(ctx: Labeller, weight: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Of both channel axes. Where one coordinate is along both, tied rows leave one tie a row."""
    rows, columns = _axis(ctx, weight, 0), _coordinate(ctx, weight, 1)
    both = columns if columns is _coordinate(ctx, weight, 0) else None
    if rows is None or both is None or bool((both == NONE).any()):
        return rows, _axis(ctx, weight, 1)
    ctx.tie(rows, rows[:1])
    return rows, both.flatten(2)[0, :, 0] if both.dim() > 2 else both[0]


def _contract(ctx: Labeller, a: Tensor | None, b: Tensor | None, size: int) -> None:
    """Tie the two sides of a summed index; a side without labels freezes the other."""
    if a is not None and b is not None:
        ctx.tie(a, b)
    elif size > 1:
        for labels in (a, b):
            if labels is not None:
                ctx.pin(labels, SUMMED)


def _dense(
    ctx: Labeller, weight: Tensor, channels: Tensor | None, transposed: bool
) -> Tensor | None:
    rows, columns = _axes(ctx, weight)
    inner, outer = (rows, columns) if transposed else (columns, rows)
    _contract(ctx, channels, inner, weight.shape[0 if transposed else 1])
    return outer


def _depthwise(ctx: Labeller, weight: Tensor, channels: Tensor | None) -> Tensor | None:
    rows = _axis(ctx, weight, 0)
    if channels is None and rows is not None:
        ctx.pin(rows, "depthwise over channels without labels")
    if channels is not None and rows is not None:
        ctx.tie(channels, rows)
    return channels if rows is None else rows


def _grouped(
    ctx: Labeller, weight: Tensor, channels: Tensor | None, groups: int, transposed: bool
) -> Tensor | None:
    """Blocks of input and output channels; the shared weight axis is relabelled per block.

    A computed weight has such labels only if the parameter it comes from got them: if it didn't,
    that is noted for another round.
    """
    inside = weight.shape[1]
    found = next((c for c in ctx.of(weight) if pattern(c) == (0, 1)), None)
    own = _axis(ctx, weight, 0)
    if channels is None or own is None:
        for labels in (channels, own, _axis(ctx, weight, 1)):
            if labels is not None:
                ctx.pin(labels, "grouped convolution over channels without labels")
        return None if transposed else own
    if transposed:
        outer = ctx.fresh(groups * inside)
        local = outer.view(groups, inside)
        ctx.tie(own, channels)
    else:
        outer = own
        local = channels.view(groups, inside)
    blocks = ctx.fresh(groups).view(groups, 1)
    ctx.nest(channels.view(groups, -1), blocks)
    ctx.nest(outer.view(groups, -1), blocks)
    rows = local.repeat_interleave(weight.shape[0] // groups, 0)
    if found is not None and not transposed:
        ctx.tie(found.flatten(2)[..., 0], rows)
    elif inside > 1 and not ctx.localise(weight, 1, rows):
        shared = _axis(ctx, weight, 1)
        if shared is not None and not transposed:
            ctx.share(shared, groups)
        for labels in (channels, outer, *ctx.of(weight)):
            ctx.pin(labels, "the weight of a grouped convolution is computed or shared")
    return outer


def addmm(ctx: Labeller, call: Call) -> list[Coordinates]:
    """``bias + a @ b``."""
    product = _product(ctx, call.args[1], call.args[2], call.outs[0])
    return [_add_bias(ctx, call.args[0], product, call.outs[0])]


def matmul(ctx: Labeller, call: Call) -> list[Coordinates]:
    """``a @ b`` for matrices and batches of matrices."""
    return [_product(ctx, call.args[0], call.args[1], call.outs[0])]


def _add_bias(ctx: Labeller, bias: Tensor, product: Coordinates, out: Tensor) -> Coordinates:
    ctx.assign(out, product)
    return combine(ctx, [out, bias], out)


def _product(ctx: Labeller, a: Tensor, b: Tensor, out: Tensor) -> Coordinates:
    """Batch dims first; ``a`` is (…, m, k) and ``b`` is (…, k, n)."""
    if a.dim() != b.dim() or a.dim() not in (2, 3):
        raise Refused("a product of these shapes")
    k_a, k_b = a.dim() - 1, a.dim() - 2
    if a.dim() == 3:
        _pin_unlabelled_batch(ctx, a, b)
        _pin_unlabelled_batch(ctx, b, a)
    summed_a, free_a = _split(ctx.of(a), k_a)
    summed_b, free_b = _split(ctx.of(b), k_b)
    free = [c.narrow(k_a, 0, 1).expand(out.shape) for c in free_a]
    free += [c.narrow(k_b, 0, 1).expand(out.shape) for c in free_b]
    left, right = _per_batch(ctx, summed_a, k_b), _per_batch(ctx, summed_b, k_a)
    left_labels = None if left is None else left.transpose(k_a, k_b)
    alike = (left is None and constant_along(ctx, a, (k_a,))) or (
        right is None and constant_along(ctx, b, (k_b,))
    )
    if not alike:  # the first state of a recurrent layer, say
        _contract(ctx, left_labels, right, a.shape[k_a])
    contracted = left_labels if left_labels is not None else right
    if contracted is not None:
        free += _blocks(ctx, contracted, k_b, out)
    return _combine_free(ctx, free)


def _pin_unlabelled_batch(ctx: Labeller, a: Tensor, b: Tensor) -> None:
    """Blocks of ``a`` may not move where ``b`` differs from block to block without labels."""
    varies = b.shape[0] > 1 and b.stride(0) != 0
    if not varies or any(0 in pattern(c) for c in ctx.of(b)):
        return
    for labels in ctx.of(a):
        if 0 in pattern(labels):
            ctx.pin(labels, MULTIPLIED)


def _split(coordinates: Coordinates, dim: int) -> tuple[Coordinates, Coordinates]:
    summed = [c for c in coordinates if dim in pattern(c)]
    return summed, [c for c in coordinates if dim not in pattern(c)]


def _per_batch(ctx: Labeller, summed: Coordinates, free_dim: int) -> Tensor | None:
    """Labels of the summed index, one a batch entry; they are tied along the free dim."""
    if not summed:
        return None
    for extra in summed[1:]:
        ctx.pin(extra, SUMMED_BOTH)
    labels = summed[0]
    if free_dim in pattern(labels):
        ctx.tie(labels, labels.narrow(free_dim, 0, 1))
    return labels.narrow(free_dim, 0, 1)


def _blocks(ctx: Labeller, labels: Tensor, k: int, out: Tensor) -> Coordinates:
    """Labels that differ from batch entry to batch entry make blocks; equal ones are one block."""
    varying = [d for d in pattern(labels) if d != k]
    if not varying:
        if ctx.node:
            ctx.couple()
        return []
    blocks = _alike(ctx, labels.reshape(len(labels), -1)).view(-1, 1, 1)
    ctx.nest(labels, blocks)
    return [blocks.expand(out.shape)]


def _alike(ctx: Labeller, rows: Tensor) -> Tensor:
    """A fresh label for every kind of row, in order of appearance."""
    _, kind = rows.unique(dim=0, return_inverse=True)
    first = torch.full((int(kind.max()) + 1,), len(rows))
    first = first.scatter_reduce(0, kind, torch.arange(len(rows)), "amin")
    rank = first.argsort().argsort()
    return ctx.fresh(len(first))[rank[kind]]


def _combine_free(ctx: Labeller, free: Coordinates) -> Coordinates:
    results: dict[tuple[int, ...], Tensor] = {}
    for labels in free:
        key = pattern(labels)
        if key in results:
            ctx.tie(results[key], labels)
        results.setdefault(key, labels)
    kept = dict(results)
    for small, outer in results.items():
        for large, inner in results.items():
            if set(small) < set(large) and ctx.nest(inner, outer):
                kept.pop(small, None)
    return list(kept.values())


CONTRACTION: dict[str, Rule] = {
    "convolution": convolution,
    "deform_conv2d": deformable,
    "addmm": addmm,
    "baddbmm": addmm,
    "mm": matmul,
    "bmm": matmul,
}
