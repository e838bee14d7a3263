"""Pointwise operators: operands that vary along the same dims must move together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import prod

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pleas_fx.labels import (
    NONE,
    Call,
    Coordinates,
    Labeller,
    Rule,
    any_along,
    canonical,
    compact,
    pattern,
)
from pleas_fx.rules.reasons import COMBINED


def pointwise(ctx: Labeller, call: Call) -> list[Coordinates]:
    """Line the operands' coordinates up by the dims they vary along, and tie them."""
    operands = [a for a in tree_leaves((call.args, call.kwargs)) if isinstance(a, Tensor)]
    combined = combine(ctx, operands, call.outs[0])
    return [list(combined) for _ in call.outs]


def combine(ctx: Labeller, operands: list[Tensor], out: Tensor) -> Coordinates:
    """The coordinates of a broadcast combination of ``operands``."""
    operands = [a for a in operands if a.dim()] or operands  # numbers carry no labels
    own = ctx.of(operands[0])
    if len(operands) == 1 and len(own) < 2 and operands[0].shape == out.shape:
        return own
    shape = torch.Size(np.broadcast_shapes(*(a.shape for a in operands)))
    results: Coordinates = []
    for operand in operands:
        wide = [canonical(labels.expand(shape)) for labels in ctx.of(operand)]
        results = _joined(ctx, results, wide)
    for operand in operands:
        results = held(ctx, operand, results, shape)
    return [labels.expand(out.shape) for labels in _nest(ctx, results)]


def _joined(ctx: Labeller, known: Coordinates, own: Coordinates) -> Coordinates:
    """With another operand's: what varies along the same dims is the same coordinate.

    Where several do (heads and channels of heads, flattened), the one that cuts the dims alike is.
    """
    results = list(known)
    for labels in own:
        same = [k for k, c in enumerate(known) if pattern(c) == pattern(labels)]
        if len(same) > 1:
            same = [k for k in same if _cuts_alike(known[k], labels)] or same
        for k in same:
            results[k] = _join(ctx, results[k], labels)
        if not same:
            results.append(labels)
    return results


def _cuts_alike(a: Tensor, b: Tensor) -> bool:
    """Whether two coordinates tell the same entries apart."""
    one, two = (np.unique(compact(c).numpy(), return_inverse=True)[1].reshape(-1) for c in (a, b))
    if len(one) != len(two):
        return False
    pairs = len(np.unique(one.astype(np.int64) * (int(two.max()) + 1) + two))
    return pairs == int(one.max()) + 1 == int(two.max()) + 1


def _join(ctx: Labeller, a: Tensor, b: Tensor) -> Tensor:
    ctx.tie(a, b)
    return canonical(torch.where(a == NONE, b, a)) if bool((a == NONE).any()) else a


def _nest(ctx: Labeller, coordinates: Sequence[Tensor]) -> Coordinates:
    """A coordinate over fewer dims contains one over more; overlapping ones share blocks.

    What contains another needn't be carried on where the other tells where it is: padding doesn't,
    nor do channels that are in several rows of a weight.
    """
    varying = [(set(pattern(c)), c) for c in coordinates]
    dropped: set[int] = set()
    for k, (small, outer) in enumerate(varying):
        for large, inner in varying:
            if small < large and ctx.nest(inner, outer):
                dropped.add(k)
    results = [own for k, own in enumerate(varying) if k not in dropped]
    for (one, a), (two, b) in combinations(results, 2):
        shared = one & two
        if shared and not (one <= shared or two <= shared):
            shape = [n if d in shared else 1 for d, n in enumerate(a.shape)]
            blocks = ctx.fresh(prod(shape)).view(shape)
            ctx.nest(a, blocks)
            ctx.nest(b, blocks)
    return [labels for _, labels in results]


def held(
    ctx: Labeller, operand: Tensor, coordinates: Sequence[Tensor], shape: torch.Size
) -> Coordinates:
    """An operand that varies along a labelled dim without labels of its own holds that dim.

    Labels that also vary along other dims still move there, alike at all positions of this one.
    """
    offset = len(shape) - operand.dim()
    own = {d + offset for c in ctx.of(operand) for d in pattern(c)}
    results: Coordinates = []
    fewer: Coordinates = []
    for labels in coordinates:
        key = pattern(labels)
        stuck = [d for d in key if d not in own and _varies(ctx, operand, d - offset)]
        if len(stuck) == len(key):
            ctx.pin(labels, COMBINED)
        else:
            for dim in stuck:
                ctx.tie(labels, any_along(labels, dim))
                labels = any_along(labels, dim).expand(shape)
        (results if pattern(labels) == key else fewer).append(labels)
    for labels in fewer:
        results = _joined(ctx, results, [labels])
    return results


def _varies(ctx: Labeller, operand: Tensor, dim: int) -> bool:
    return dim >= 0 and operand.shape[dim] > 1 and not _constant(ctx, operand, dim)


def constant_along(ctx: Labeller, tensor: Tensor, dims: tuple[int, ...]) -> bool:
    """Whether a tensor is the same, whatever the data, all along some dims."""
    return not ctx.depends_on_data(tensor) and all(_constant(ctx, tensor, d) for d in dims)


def _constant(ctx: Labeller, operand: Tensor, dim: int) -> bool:
    if operand.stride(dim) == 0:
        return True
    if ctx.depends_on_data(operand):
        return False
    return bool((operand == operand.narrow(dim, 0, 1)).all())


POINTWISE: dict[str, Rule] = dict.fromkeys(
    """add sub mul div pow relu relu6 hardtanh hardswish hardsigmoid sigmoid silu gelu tanh exp exp2
    expm1 log log2 log10 log1p sqrt rsqrt neg abs sign clamp clamp_min clamp_max leaky_relu elu
    celu selu mish erf erfc rsub reciprocal where maximum minimum fmax fmin softplus softsign
    square dropout native_dropout alpha_dropout threshold sin cos tan atan atan2 lerp addcmul
    addcdiv prelu _prelu_kernel rrelu masked_fill eq ne gt lt ge le logical_not logical_and
    logical_or logical_xor bitwise_and bitwise_or bitwise_not floor ceil round trunc frac fmod
    remainder log_sigmoid_forward hardshrink softshrink nan_to_num isnan isfinite rrelu_with_noise
    floor_divide true_divide xlogy sinh cosh asinh acosh atanh asin acos erfinv sinc sgn
    special_expit _conj resolve_conj zeros_like ones_like full_like logit""".split(),
    pointwise,
)
