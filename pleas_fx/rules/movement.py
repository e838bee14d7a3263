"""Data movement: the operator that moves the data moves the labels."""

from __future__ import annotations

import operator
from bisect import bisect_left
from itertools import accumulate, combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pleas_fx.labels import (
    NONE,
    Call,
    Coordinates,
    Labeller,
    Refused,
    Rule,
    any_along,
    canonical,
    compact,
    pattern,
)
from pleas_fx.rules.pointwise import constant_along, held
from pleas_fx.rules.reasons import SEVERAL


def moved(ctx: Labeller, call: Call) -> list[Coordinates]:
    """The same call on the label array of every coordinate of the first argument."""
    _refuse_labelled_indices(ctx, call)
    results: list[Coordinates] = [[] for _ in call.outs]
    for labels in ctx.of(call.args[0]):
        moved_labels = _same_call(call, labels)
        for k, part in enumerate(moved_labels):
            results[k].append(part)
    return results


def _refuse_labelled_indices(ctx: Labeller, call: Call) -> None:
    for other in (*call.args[1:], *call.kwargs.values()):
        for value in other if isinstance(other, (list, tuple)) else (other,):
            if isinstance(value, Tensor) and ctx.depends_on_data(value):
                raise Refused("its indices depend on data")


def _same_call(call: Call, labels: Tensor) -> tuple[Tensor, ...]:
    func: Any = call.func
    try:
        result = func(labels, *call.args[1:], **call.kwargs)
    except (RuntimeError, NotImplementedError):  # kernels without an integer version
        result = func(labels.double(), *call.args[1:], **call.kwargs).long()
    return tuple(result) if isinstance(result, (list, tuple)) else (result,)


def reshape(ctx: Labeller, call: Call) -> list[Coordinates]:
    """The labels of every coordinate, laid out as the data are.

    Where dims are joined, two coordinates that had nothing to do with each other may come to lie
    on one dim. Labels that can't move anyway are then positions like any other.
    """
    before = ctx.of(call.args[0])
    after = [canonical(reshaped(labels, call.outs[0].shape)) for labels in before]
    joined = {
        k
        for pair in combinations(range(len(before)), 2)
        if _overlap(after, pair) and not _overlap(before, pair)
        for k in pair
    }
    return [[c for k, c in enumerate(after) if k not in joined or not ctx.immovable(before[k])]]


def _overlap(coordinates: Coordinates, pair: tuple[int, int]) -> bool:
    return not set(pattern(coordinates[pair[0]])).isdisjoint(pattern(coordinates[pair[1]]))


def reshaped(labels: Tensor, shape: torch.Size) -> Tensor:
    """What ``reshape`` gives; only stretches of dims in which the labels vary are laid out."""
    if not labels.numel():
        return labels.reshape(shape)
    small = compact(labels)
    before, after = _products(labels.shape), _products(shape)
    common = sorted(set(before) & set(after))
    varying = {bisect_left(common, p) for p, n in zip(before, small.shape, strict=True) if n > 1}
    laid, sizes = (
        [n if bisect_left(common, p) in varying else 1 for p, n in zip(products, dims, strict=True)]
        for products, dims in ((before, labels.shape), (after, shape))
    )
    return small.expand(laid).reshape(sizes).expand(shape)


def _products(shape: torch.Size) -> list[int]:
    """Of all sizes up to each; where two shapes have the same, what lies before stays together."""
    return list(accumulate(shape, operator.mul))


def same(ctx: Labeller, call: Call) -> list[Coordinates]:
    """A copy, an alias, or one value written everywhere: the labels of the argument."""
    return [list(ctx.of(call.args[0]))]


def allocated(ctx: Labeller, call: Call) -> list[Coordinates]:
    """``new_empty``: dims of the argument's size carry labels of their own, tied when written."""
    out = call.outs[0]
    results: Coordinates = []
    for labels in ctx.of(call.args[0]):
        dims = pattern(labels)
        if (
            len(dims) == 1
            and out.dim() == labels.dim()
            and out.shape[dims[0]] == labels.shape[dims[0]]
        ):
            shape = [1] * out.dim()
            shape[dims[0]] = -1
            results.append(ctx.fresh(out.shape[dims[0]]).view(shape).expand(out.shape))
    return [results]


def constant(ctx: Labeller, call: Call) -> list[Coordinates]:
    """``new_zeros`` and its like take only type and device from their argument."""
    for out in call.outs:
        ctx.independent(out)
    return [[] for _ in call.outs]


def copied(ctx: Labeller, call: Call) -> list[Coordinates]:
    """``copy_``: what is written must move with the place it is written to."""
    target, value = call.args[0], call.args[1]
    into = {pattern(c): c for c in ctx.of(target)}
    if not into:
        raise Refused("writes labelled channels into an unlabelled tensor")
    for labels in ctx.of(value):
        wide = canonical(labels.expand(target.shape))
        if pattern(wide) not in into:
            raise Refused("the written channels don't line up with the target's")
        ctx.tie(into[pattern(wide)], wide)
    held(ctx, value, [*into.values()], target.shape)
    return [list(ctx.of(target))]


def scattered(ctx: Labeller, call: Call) -> list[Coordinates]:
    """``slice_scatter``: what is written moves with the place it is written to.

    A target that is the same constant for all channels takes the labels of what comes into it.
    """
    target, value, dim = call.args[0], call.args[1], int(call.arg(2, "dim", 0)) % call.args[0].dim()
    start, end, step = call.arg(3, "start", None), call.arg(4, "end", None), call.arg(5, "step", 1)
    window = (*[slice(None)] * dim, slice(start, end, step))
    into = {pattern(c): c for c in ctx.of(target)}
    results = list(ctx.of(target))
    for labels in ctx.of(value):
        key = pattern(labels)
        if key in into:
            ctx.tie(into[key][window], labels)
        elif dim in key or not constant_along(ctx, target, key):
            raise Refused("the written channels don't line up with the target's")
        else:
            results.append(labels.narrow(dim, 0, 1).expand(target.shape))
    places = [canonical(c[window]) for c in into.values()]
    held(ctx, value, places, value.shape)
    return [results]


def concatenated(ctx: Labeller, call: Call) -> list[Coordinates]:
    """``cat``: labels along the joined dim are concatenated, all others tied.

    A part that is the same constant for all channels is tied to none, like padding.
    """
    tensors = [t for t in call.args[0] if t.numel() > 0]
    out = call.outs[0]
    dim = int(call.arg(1, "dim", 0)) % out.dim()
    along = [[c for c in ctx.of(t) if dim in pattern(c)] for t in tensors]
    across = [[c for c in ctx.of(t) if dim not in pattern(c)] for t in tensors]
    results: Coordinates = []
    if any(along):
        results.append(_join(ctx, tensors, along, dim).expand(out.shape))
    results += _tied_across(ctx, tensors, across, along, dim, out)
    return [results]


def _join(ctx: Labeller, tensors: list[Tensor], along: list[Coordinates], dim: int) -> Tensor:
    pieces = []
    for tensor, coordinates in zip(tensors, along, strict=True):
        if len(coordinates) > 1:
            for labels in coordinates:
                ctx.pin(labels, SEVERAL)
        if coordinates:
            pieces.append(compact(coordinates[0]))
            continue
        ctx.joined += [compact(c[0]) for c in along if c]
        labels = ctx.fresh(tensor.shape[dim])
        ctx.pin(labels, "channels without labels, concatenated with labelled ones")
        shape = [1] * tensor.dim()
        shape[dim] = -1
        pieces.append(labels.view(shape))
    other = [max(p.shape[d] for p in pieces) for d in range(pieces[0].dim())]
    sized = [
        p.expand([t.shape[dim] if d == dim else n for d, n in enumerate(other)])
        for p, t in zip(pieces, tensors, strict=True)
    ]
    return torch.cat(sized, dim)


def _tied_across(
    ctx: Labeller,
    tensors: list[Tensor],
    across: list[Coordinates],
    along: list[Coordinates],
    dim: int,
    out: Tensor,
) -> Coordinates:
    results: Coordinates = []
    tangled = any(len(pattern(c)) > 1 for joined in along for c in joined)
    for k, coordinates in enumerate(across):
        for labels in coordinates:
            key = pattern(labels)
            others = [[c for c in cs if pattern(c) == key] for cs in across]
            alike = [constant_along(ctx, tensor, key) for tensor in tensors]
            if tangled or not all(map(operator.or_, map(bool, others), alike)):
                ctx.pin(labels, "concatenated with channels that don't line up")
            for same_pattern in filter(None, others):
                ctx.tie(compact(labels), compact(same_pattern[0]))
            if all(alike[:k]) and not any(others[:k]):
                results.append(labels.narrow(dim, 0, 1).expand(out.shape))
    return results


def stacked(ctx: Labeller, call: Call) -> list[Coordinates]:
    """``stack``: a concatenation along a new dim, on which nothing is labelled.

    But the last states of recurrent layers, which are returned whether or not they are read, have
    nothing to do with each other.
    """
    tensors, out = list(call.args[0]), call.outs[0]
    dim = int(call.arg(1, "dim", 0)) % out.dim()
    found = [{pattern(c): c for c in ctx.of(tensor)} for tensor in tensors]
    first = found[0]
    if any(own.keys() != first.keys() for own in found):
        raise Refused("stacks channels that don't line up")
    if ctx.recurrent:
        return [[torch.stack([own[key] for own in found], dim) for key in first]]
    for own in found[1:]:
        for key, labels in own.items():
            ctx.tie(first[key], labels)
    return [[labels.unsqueeze(dim).expand(out.shape) for labels in first.values()]]


def padded(ctx: Labeller, call: Call) -> list[Coordinates]:
    """``constant_pad_nd``: padding on a labelled dim is a constant that belongs to no channel."""
    out, pads = call.outs[0], list(call.args[1])
    results: Coordinates = []
    for labels in ctx.of(call.args[0]):
        dims = {labels.dim() - 1 - i // 2 for i, n in enumerate(pads) if n}
        if dims & set(pattern(labels)):
            results.append(torch.ops.aten.constant_pad_nd.default(labels.contiguous(), pads, NONE))
            continue
        for dim in dims:
            labels = labels.narrow(dim, 0, 1)
        results.append(labels.expand(out.shape))
    return [results]


def mirrored(ctx: Labeller, call: Call) -> list[Coordinates]:
    """Reflection and replication padding: spatial positions repeat, channels stay."""
    spatial = len(call.args[1]) // 2
    return [[_spread(ctx, c, spatial, call.outs[0]) for c in ctx.of(call.args[0])]]


def _spread(ctx: Labeller, labels: Tensor, spatial: int, out: Tensor) -> Tensor:
    for dim in range(labels.dim() - spatial, labels.dim()):
        ctx.tie(labels, any_along(labels, dim))
        labels = any_along(labels, dim)
    return labels.expand(out.shape)


def unfolded(ctx: Labeller, call: Call) -> list[Coordinates]:
    """``im2col``: windows of labels; zeros around a channel are the channel's, as it moves whole.

    Where labels vary along the image, padding belongs to none of them.
    """
    out, results = call.outs[0], list[Tensor]()
    for labels in ctx.of(call.args[0]):
        if labels.dim() == 4 and pattern(labels) == (1,):
            window = out.shape[1] // labels.shape[1]
            rows = labels[:1, :, 0, :1].repeat_interleave(window, 1)
            results.append(rows.expand(out.shape))
            continue
        shifted = (labels - NONE).double().contiguous()
        results.append(call.func(shifted, *call.args[1:], **call.kwargs).long() + NONE)
    return [results]


def folded(ctx: Labeller, call: Call) -> list[Coordinates]:
    """``col2im``: values that come to lie on one place are added, so they move together.

    Places between the windows are zero, which is no channel's in particular.
    """
    return [
        [_added_up(ctx, call, labels).expand(call.outs[0].shape) for labels in ctx.of(call.args[0])]
    ]


def _added_up(ctx: Labeller, call: Call, labels: Tensor) -> Tensor:
    channels, *image = call.outs[0].shape[-3:]
    if labels.dim() == 3:
        if 0 in pattern(labels):
            raise Refused(SEVERAL)
        labels = labels[0]
    windows = labels if labels.dim() - 1 in pattern(labels) else labels[:, :1]
    grid = windows.reshape(channels, -1, windows.shape[-1])  # channel, place in window, window
    first = grid[:, :1, :1]
    if bool((grid == first).all()):
        return first
    grid = grid.expand(-1, -1, labels.shape[-1])
    numbers = torch.arange(1.0, image[0] * image[1] + 1, dtype=torch.double).view(1, 1, *image)
    places = F.unfold(numbers, *call.args[2:]).long()[0].reshape(-1) - 1
    inside = places >= 0  # elsewhere is padding, which is cut off
    values, places = grid.reshape(channels, -1)[:, inside], places[inside]
    result = values.new_full((channels, image[0] * image[1]), NONE)
    result[:, places] = values
    ctx.tie(values, result[:, places])
    return canonical(result.view(channels, *image))


MOVEMENT: dict[str, Rule] = {
    **dict.fromkeys(
        """transpose permute t numpy_T expand repeat
        unsqueeze squeeze flip roll slice select split split_with_sizes chunk unbind unfold
        unsafe_split as_strided movedim tile index_select index pixel_shuffle pixel_unshuffle
        channel_shuffle native_channel_shuffle swapaxes squeeze_copy diagonal rot90
        repeat_interleave narrow unflatten flatten expand_as view_as take""".split(),
        moved,
    ),
    **dict.fromkeys("view _unsafe_view reshape _reshape_alias".split(), reshape),
    **dict.fromkeys(
        """clone contiguous alias detach lift_fresh lift_fresh_copy _to_copy to zero_""".split(),
        same,
    ),
    "new_empty": allocated,
    **dict.fromkeys("new_zeros new_ones new_full".split(), constant),
    "copy_": copied,
    "slice_scatter": scattered,
    "cat": concatenated,
    "stack": stacked,
    "constant_pad_nd": padded,
    **dict.fromkeys(
        """reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d
        replication_pad2d replication_pad3d""".split(),
        mirrored,
    ),
    "im2col": unfolded,
    "col2im": folded,
}
