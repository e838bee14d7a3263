"""Match channels by their weights, group by group (Git Re-Basin, Ainsworth et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from pleas_fx.algebra.assignment import consistent
from pleas_fx.ir import (
    Axis,
    BoolArray,
    FloatArray,
    Group,
    GroupId,
    IntArray,
    Permutation,
    Program,
    Symmetry,
)
from pleas_fx.permuting import occurrences, permuted_tensors

SWEEPS = 30
Partners = dict[GroupId, IntArray]
Tensors = Mapping[str, torch.Tensor]


def match_by_weights(
    programs: Sequence[Program],
    symmetry: Symmetry,
    families: Sequence[tuple[Group, ...]],
    partner: Partners,
    loose: Mapping[GroupId, BoolArray],
) -> None:
    """Change ``partner`` where ``loose`` (sources, n) allows it for both channels of a slot.

    Coordinate descent: every family in turn, given all others, until nothing changes.
    """
    for s in range(1, len(programs)):
        free = {g: both[0][partner[g][0]] & both[s][partner[g][s]] for g, both in loose.items()}
        units = [family for family in families if any(free[g.id].sum() > 1 for g in family)]
        for _ in range(SWEEPS):
            if not sum(_rematch(programs, symmetry, family, partner, s, free) for family in units):
                break


def _rematch(
    programs: Sequence[Program],
    symmetry: Symmetry,
    family: tuple[Group, ...],
    partner: Partners,
    source: int,
    free: Mapping[GroupId, BoolArray],
) -> bool:
    """The best exchange of the free slots of one family; whether it changed anything."""
    own, other = _comparable(
        *(_weights(programs[s], symmetry, family, partner, s) for s in (0, source))
    )
    scores = [_among(free[g.id], _similarity(symmetry, g, own, other, free[g.id])) for g in family]
    count = family[0].blocks.count if family[0].blocks else None
    steps = consistent({(0, 1): scores}, 2, count)
    for group, step in zip(family, steps, strict=True):
        partner[group.id][source] = partner[group.id][source][step[1]]
    return any((step[1] != np.arange(len(step[1]))).any() for step in steps)


def _among(free: BoolArray, scores: FloatArray) -> FloatArray:
    """(n, n): ``scores`` between the free slots; every other slot stays what it is."""
    result = np.full((len(free), len(free)), -np.inf)
    np.fill_diagonal(result, 0.0)
    result[np.ix_(free, free)] = scores
    return result


def weight_agreement(
    programs: Sequence[Program], symmetry: Symmetry, group: Group, partner: Partners
) -> FloatArray:
    """Mean over the sources after the first of the cosine between matched channels' weights."""
    found = []
    for s in range(1, len(programs)):
        first, moved = _comparable(
            *(_weights(programs[k], symmetry, (group,), partner, k) for k in (0, s))
        )
        mine = _in_place(symmetry, group, first, first)
        theirs = _in_place(symmetry, group, moved, moved)
        scale = np.sqrt(np.maximum(mine * theirs, 1e-300))
        found.append(_in_place(symmetry, group, first, moved) / scale)
    return np.asarray(np.mean(found, axis=0))


def _weights(
    program: Program, symmetry: Symmetry, family: Sequence[Group], partner: Partners, source: int
) -> Tensors:
    """The tensors that the family sits on, their channels in the order of the slots."""
    state = program.module.state_dict()
    keys = {axis.key for group in family for axis in group.axes}
    tensors = {key: state[key].double() for key in keys if state[key].is_floating_point()}
    order = Permutation({g: p[source] for g, p in partner.items()})
    return tensors | dict(permuted_tensors(symmetry.layout, tensors, order))


def _comparable(own: Tensors, other: Tensors) -> tuple[Tensors, Tensors]:
    """Without layers whose other channels are of another number, for other classes, say."""
    keys = [key for key, tensor in own.items() if tensor.shape == other[key].shape]
    return {key: own[key] for key in keys}, {key: other[key] for key in keys}


def _similarity(
    symmetry: Symmetry, group: Group, own: Tensors, other: Tensors, slots: BoolArray
) -> FloatArray:
    """Inner products of what belongs to each of the slots, every pair of them."""
    total = np.zeros((int(slots.sum()),) * 2)
    for a, b in _rows(symmetry, group, own, other, slots):
        total += (a @ b.T).cpu().numpy()
    return total


def _in_place(symmetry: Symmetry, group: Group, own: Tensors, other: Tensors) -> FloatArray:
    """The diagonal of the similarity of all slots."""
    total = np.zeros(group.size)
    for a, b in _rows(symmetry, group, own, other, np.ones(group.size, bool)):
        total += (a * b).sum(1).cpu().numpy()
    return total


def _rows(
    symmetry: Symmetry, group: Group, own: Tensors, other: Tensors, slots: BoolArray
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(slots, everything that belongs to one) of both, axis by axis, scaled to norm one."""
    for axis in group.axes:
        classes = symmetry.layout.axes[axis]
        if classes.ndim == 1 and axis.key in own:
            rows = _channel_rows(classes, symmetry, group)[slots]
            a, b = (_flat(tensors[axis.key], axis, rows) for tensors in (own, other))
            yield a, b / (float(a.norm() * b.norm()) or 1.0)


def _channel_rows(classes: IntArray, symmetry: Symmetry, group: Group) -> IntArray:
    """(channels, occurrences): where along an axis each channel of the group sits."""
    own = np.flatnonzero(symmetry.layout.group[classes] == group.id)
    channel = symmetry.layout.channel[classes[own]]
    order = own[np.lexsort((occurrences(classes[own]), channel))]
    return order.reshape(group.size, -1)


def _flat(tensor: torch.Tensor, axis: Axis, rows: IntArray) -> torch.Tensor:
    """(channels, everything that belongs to one channel)."""
    index = torch.from_numpy(rows.reshape(-1)).to(tensor.device)
    flat = tensor.movedim(axis.dim, 0).reshape(tensor.shape[axis.dim], -1)
    return flat.index_select(0, index).reshape(len(rows), rows.shape[1] * flat.shape[1])
