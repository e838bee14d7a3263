"""Reductions and pooling: labels that are wholly reduced vanish, spatial pooling keeps channels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from pleas_fx.labels import Call, Coordinates, Labeller, Refused, Rule, any_along, pattern
from pleas_fx.rules.normalisation import nest_rows
from pleas_fx.rules.pointwise import combine


def reduced(ctx: Labeller, call: Call) -> list[Coordinates]:
    """``mean``, ``sum``, ``amax`` … over the dims that the call names (none: all)."""
    x = call.args[0]
    dims = _dims(call, x)
    results: list[Coordinates] = [[] for _ in call.outs]
    for labels in ctx.of(x):
        if len(call.outs) == 2 and call.name in ("max", "min") and set(pattern(labels)) & dims:
            raise Refused("returns the index of a channel")
        remaining = nest_rows(ctx, labels, dims)
        if remaining is None:
            continue
        for dim in sorted(dims):
            remaining = remaining.narrow(dim, 0, 1)
        for k, out in enumerate(call.outs):
            small = remaining
            if out.dim() < x.dim():
                for dim in sorted(dims, reverse=True):
                    small = small.squeeze(dim)
            results[k].append(small.expand(out.shape))
    return results


def _dims(call: Call, x: Tensor) -> set[int]:
    position = 2 if call.name == "linalg_vector_norm" else 1
    given = call.arg(position, "dim")
    if isinstance(given, bool) or given is None:
        return set(range(x.dim()))
    if isinstance(given, int):
        return {given % x.dim()}
    if isinstance(given, (list, tuple)) and all(isinstance(d, int) for d in given):
        return {d % x.dim() for d in given} or set(range(x.dim()))
    raise Refused("can't read the dims it reduces")


def pooling(spatial: int) -> Rule:
    """Pooling or resampling over the last ``spatial`` dims, which it treats alike.

    Also where in its channel each maximum was, which moves with the channel.
    """

    def rule(ctx: Labeller, call: Call) -> list[Coordinates]:
        results: list[Coordinates] = [[] for _ in call.outs]
        for other in call.args[1:]:
            for labels in ctx.of(other):
                ctx.pin(labels, "says where to sample")
        for labels in ctx.of(call.args[0]):
            for dim in range(labels.dim() - spatial, labels.dim()):
                ctx.tie(labels, any_along(labels, dim))
                labels = any_along(labels, dim)
            for out, own in zip(call.outs, results, strict=True):
                own.append(labels.expand(out.shape))
        return results

    return rule


def unpooling(spatial: int) -> Rule:
    """``max_unpool``: values and where in their channels they go."""

    def rule(ctx: Labeller, call: Call) -> list[Coordinates]:
        values, places = ctx.of(call.args[0]), ctx.of(call.args[1])
        if sorted(map(pattern, values)) != sorted(map(pattern, places)):
            raise Refused("its values and places don't have the same channels")
        for labels in values:
            ctx.tie(labels, next(c for c in places if pattern(c) == pattern(labels)))
        return pooling(spatial)(ctx, replace(call, args=call.args[:1]))

    return rule


def sampling(spatial: int) -> Rule:
    """``grid_sample``: places to read at, which may have labels of their own (heads, points)."""

    def rule(ctx: Labeller, call: Call) -> list[Coordinates]:
        image, grid = call.args[:2]
        kept = [c for labels in ctx.of(grid) for c in _of_places(ctx, labels)]
        read = pooling(spatial)(ctx, replace(call, args=(image,)))[0]
        first: tuple[Any, ...] = (..., *[slice(1)] * spatial)
        corner = image[first]
        places = grid[..., 0].unsqueeze(1)
        for stand_in in (corner, places):
            ctx.source(stand_in)
        ctx.assign(corner, [c[first] for c in read])
        ctx.assign(places, [c[..., 0].unsqueeze(1) for c in kept])
        return [combine(ctx, [corner, places], call.outs[0])]

    return rule


def _of_places(ctx: Labeller, labels: Tensor) -> Coordinates:
    """A place's coordinates are in their order; all of them may move with what has the place."""
    last = labels.dim() - 1
    if pattern(labels) == (last,):
        ctx.pin(labels, "says where to sample")
        return []
    ctx.tie(labels, any_along(labels, last))
    return [any_along(labels, last)]


def _spatial(names: str) -> dict[str, Rule]:
    make: Callable[[int], Rule] = pooling
    return {f"{name}{n}d": make(n) for name in names.split() for n in (1, 2, 3)}


REDUCTION: dict[str, Rule] = {
    **dict.fromkeys(
        """mean sum amax amin max min var std prod any all logsumexp linalg_vector_norm norm
        var_mean std_mean nansum""".split(),
        reduced,
    ),
    **_spatial(
        """avg_pool max_pool adaptive_avg_pool _adaptive_avg_pool adaptive_max_pool
        upsample_nearest _upsample_nearest_exact"""
    ),
    **{f"max_pool{n}d_with_indices": pooling(n) for n in (1, 2, 3)},
    "upsample_linear1d": pooling(1),
    **{
        name: pooling(2)
        for name in """upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa
        _upsample_bicubic2d_aa fractional_max_pool2d""".split()
    },
    "upsample_trilinear3d": pooling(3),
    **{f"grid_sampler_{n}d": sampling(n) for n in (2, 3)},
    **{f"max_unpool{n}d": unpooling(n) for n in (2, 3)},
}
