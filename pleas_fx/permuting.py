"""Apply elements of a symmetry to a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from pleas_fx.errors import IncompatibleModelsError
from pleas_fx.ir import Axis, Group, GroupId, IntArray, Layout, Permutation, Symmetry
from pleas_fx.module_tree import copied, forgetful


def random_permutation(symmetry: Symmetry, seed: int) -> Permutation:
    """A uniformly random permutation of every group; blocks move as wholes, then inside."""
    rng = np.random.default_rng(seed)
    outer: dict[int, IntArray] = {}
    order: dict[GroupId, IntArray] = {}
    for group in (*symmetry.groups, *symmetry.implicit):
        order[group.id] = _draw(group, outer, rng)
    return Permutation(order)


def _draw(group: Group, outer: dict[int, IntArray], rng: np.random.Generator) -> IntArray:
    if group.blocks is None:
        return rng.permutation(group.size)
    family, count, inner = group.blocks.family, group.blocks.count, group.blocks.inner
    blocks = outer.setdefault(family, rng.permutation(count))
    inside = np.stack([rng.permutation(inner) for _ in range(count)])
    return (blocks[:, None] * inner + inside).reshape(-1)


def permuted(symmetry: Symmetry, model: nn.Module, permutation: Permutation) -> nn.Module:
    """A copy of ``model`` in which place i of a group holds channel ``order[g][i]``.

    Raises:
        IncompatibleModelsError: the model lacks an axis that the symmetry names.
    """
    result = forgetful(copied(model))
    own = _tensors(result)
    with torch.no_grad():
        for key, moved in permuted_state(symmetry, result, permutation).items():
            own[key].copy_(moved)
    return result


def permuted_state(
    symmetry: Symmetry, model: nn.Module, permutation: Permutation
) -> dict[str, Tensor]:
    """What :func:`permuted` changes: new tensors by one of their names, for functional calls.

    Raises:
        IncompatibleModelsError: the model lacks an axis that the symmetry names.
    """
    tensors = _tensors(model)
    missing = {a: c for a, c in symmetry.layout.axes.items() if a.key not in tensors}
    for axis in axis_moves(replace(symmetry.layout, axes=missing), permutation):
        raise IncompatibleModelsError(f"the model has no parameter {axis.key}")
    first = first_names(model)
    own = {key: t.detach() for key, t in tensors.items() if first[key] == key}
    return dict(permuted_tensors(symmetry.layout, own, permutation))


def first_names(model: nn.Module) -> dict[str, str]:
    """Of every parameter and buffer; a tied one's first name is what symmetries call it."""
    tensors = _tensors(model)
    first = {id(t): key for key, t in reversed(tensors.items())}
    return {key: first[id(t)] for key, t in tensors.items()}


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers; a tied one has several names."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def permuted_tensors(
    layout: Layout, tensors: Mapping[str, Tensor], permutation: Permutation
) -> Iterator[tuple[str, Tensor]]:
    """Those of ``tensors`` that the permutation moves, each as a new tensor, one by one."""
    axes = {axis: classes for axis, classes in layout.axes.items() if axis.key in tensors}
    for key, moves in moves_by_key(replace(layout, axes=axes), permutation).items():
        yield key, moved(tensors[key], moves, layout)


Moves = list[tuple[Axis, IntArray]]


def moves_by_key(layout: Layout, permutation: Permutation) -> dict[str, Moves]:
    """What the permutation does to every tensor that it moves."""
    by_key: dict[str, Moves] = {}
    for axis, index in axis_moves(layout, permutation).items():
        by_key.setdefault(axis.key, []).append((axis, index))
    return by_key


def moved(tensor: Tensor, moves: Moves, layout: Layout) -> Tensor:
    """Plain axes first; then the block-local axis, whose rows were moved already."""
    for axis, index in sorted(moves, key=lambda m: m[1].ndim):
        if tensor.shape[axis.dim] != layout.axes[axis].shape[-1]:
            raise IncompatibleModelsError(
                f"{axis.key} has {tensor.shape[axis.dim]} channels on dim {axis.dim}, "
                f"expected {layout.axes[axis].shape[-1]}"
            )
        where = torch.from_numpy(index).to(tensor.device)
        if index.ndim == 1:
            tensor = tensor.index_select(axis.dim, where)
        else:
            shape = [*index.shape] + [1] * (tensor.dim() - 2)
            tensor = tensor.gather(1, where.view(shape).expand(tensor.shape))
    return tensor


def axis_moves(layout: Layout, permutation: Permutation) -> dict[Axis, IntArray]:
    """Per axis, the index each place takes its entries from; 2-d for block-local axes."""
    target = _class_targets(layout, permutation)
    rows: dict[str, IntArray] = {}
    moves: dict[Axis, IntArray] = {}
    for axis, classes in sorted(layout.axes.items(), key=lambda item: item[1].ndim):
        if classes.ndim == 1:
            moves[axis] = _gather_index(classes, target)
            rows[f"{axis.key}:{axis.dim}"] = moves[axis]
    for axis, classes in layout.axes.items():
        if classes.ndim == 2:
            own = rows.get(f"{axis.key}:0", np.arange(len(classes)))
            moves[axis] = _gather_rows(classes, own, target)
    return {axis: index for axis, index in moves.items() if not _identity(index)}


def _identity(index: IntArray) -> bool:
    return bool((index == np.arange(index.shape[-1])).all())


def _class_targets(layout: Layout, permutation: Permutation) -> IntArray:
    """For every class id, the class whose entries come to its place."""
    target = np.arange(len(layout.group))
    lookup: dict[int, IntArray] = {}
    for group, order in permutation.order.items():
        ids = np.flatnonzero(layout.group == group)
        by_channel = np.empty(len(order), np.int64)
        by_channel[layout.channel[ids]] = ids
        lookup[group] = by_channel
        target[by_channel] = by_channel[order]
    return target


def occurrences(classes: IntArray) -> IntArray:
    """For every position, how many earlier positions hold the same class."""
    order = np.argsort(classes, kind="stable")
    ordered = classes[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    lengths = np.diff(np.r_[starts, len(ordered)])
    result = np.empty(len(classes), np.int64)
    result[order] = np.arange(len(ordered)) - np.repeat(starts, lengths)
    return result


def _gather_index(classes: IntArray, target: IntArray) -> IntArray:
    occurrence = occurrences(classes)
    span = len(classes) + 1
    have = classes * span + occurrence
    want = np.where(classes < 0, classes, target[classes]) * span + occurrence
    order = np.argsort(have, kind="stable")
    return np.asarray(order[np.searchsorted(have[order], want)])


def _gather_rows(classes: IntArray, own: IntArray, target: IntArray) -> IntArray:
    """``own[o]`` is the row that came to row o; its entries are looked up there."""
    moved = classes[own]
    wanted = target[classes]
    have_order = np.argsort(moved, axis=1, kind="stable")
    want_order = np.argsort(wanted, axis=1, kind="stable")
    index = np.empty_like(classes)
    np.put_along_axis(index, want_order, have_order, axis=1)
    return index
