"""Slots as ids, and index arithmetic between the merged network's axes and its sources' axes.

The merged network carries every value as one tensor a membership: its *lanes*. Positions of a
lane are known by slot ids, read off the labels of the rewritten graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pleas_fx.ir import GroupId, IntArray, Lane, Layout, Membership, joint, members, only
from pleas_fx.permuting import occurrences


@dataclass(frozen=True, slots=True)
class SlotTable:
    """Every slot of the merged network under one id."""

    start: Mapping[tuple[GroupId, Membership], int]
    lanes: Mapping[GroupId, tuple[Lane, ...]]
    classes: IntArray  # (slots, sources): class id in that source's layout, -1: none
    membership: IntArray  # (slots,)

    @property
    def size(self) -> int:
        return len(self.membership)

    @property
    def present(self) -> tuple[int, ...]:
        """The sources that have something to read in every group."""
        every = range(self.classes.shape[1])
        return tuple(
            s
            for s in every
            if all(any(lane.membership >> s & 1 for lane in own) for own in self.lanes.values())
        )

    def ids(self, group: GroupId, membership: Membership) -> IntArray:
        """The slots of a group in a lane, in their order."""
        lane = next(x for x in self.lanes[group] if x.membership == membership)
        start = self.start[group, membership]
        return np.arange(start, start + len(lane))

    def in_lane(self, classes: IntArray, source: int, membership: Membership) -> np.ndarray:
        """Which class ids of a source stand in some slot of this membership."""
        own = self.classes[self.membership == membership, source]
        return np.isin(classes, own[own >= 0])

    def slot_of(self, source: int, membership: Membership, count: int) -> IntArray:
        """For each of ``count`` class ids of a source its slot in this membership, or -1."""
        table = np.full(count, -1, np.int64)
        rows = np.flatnonzero((self.membership == membership) & (self.classes[:, source] >= 0))
        table[self.classes[rows, source]] = rows
        return table


def slot_table(lanes: Mapping[GroupId, tuple[Lane, ...]], layouts: Sequence[Layout]) -> SlotTable:
    """Number the slots of all groups."""
    start: dict[tuple[GroupId, Membership], int] = {}
    classes: list[IntArray] = []
    membership: list[IntArray] = []
    total = 0
    for group, group_lanes in lanes.items():
        tables = [class_of_channel(layout, group) for layout in layouts]
        for lane in group_lanes:
            start[group, lane.membership] = total
            total += len(lane)
            classes.append(_to_classes(lane.channels, tables))
            membership.append(np.full(len(lane), lane.membership, np.int64))
    return SlotTable(
        start=start,
        lanes=lanes,
        classes=np.concatenate(classes) if classes else np.zeros((0, len(layouts)), np.int64),
        membership=np.concatenate(membership) if membership else np.zeros(0, np.int64),
    )


def lane_of(membership: Membership, channels: IntArray, sources: int) -> Lane:
    """A lane from matched channels (sources, slots), in the first member's order."""
    own = members(membership)
    table = np.full((channels.shape[1], sources), -1, np.int64)
    for s in own:
        table[:, s] = channels[s]
    return Lane(membership, table[np.argsort(table[:, own[0]], kind="stable")])


def whole_lane(source: int, size: int, sources: int) -> Lane:
    """All channels of one source."""
    return lane_of(only(source), np.tile(np.arange(size), (sources, 1)), sources)


def without_others(lane: Lane, kept: Sequence[int]) -> Lane:
    """The same slots with the channels of some sources only."""
    own = set(members(lane.membership)) & set(kept)
    others = ~np.isin(np.arange(lane.channels.shape[1]), list(own))
    return Lane(joint(own), np.where(others, -1, lane.channels))


def class_of_channel(layout: Layout, group: GroupId) -> IntArray:
    """The class ids of a group, by channel."""
    ids = np.flatnonzero((layout.group == group) & (layout.channel >= 0))
    return ids[np.argsort(layout.channel[ids], kind="stable")]


def _to_classes(channels: IntArray, tables: Sequence[IntArray]) -> IntArray:
    columns = []
    for s, table in enumerate(tables):
        own = channels[:, s]
        padded = np.append(table, -1)
        columns.append(padded[np.where(own >= 0, own, len(table))])
    return np.stack(columns, axis=1)


def locate(wanted: IntArray, occurrence: IntArray, axis: IntArray) -> IntArray:
    """Where on ``axis`` the n-th occurrence of each wanted class is; -1 where it isn't."""
    span = int(max(len(axis), occurrence.max(initial=0) + 1)) + 1
    have = axis * span + occurrences(axis)
    order = np.argsort(have, kind="stable")
    want = wanted * span + occurrence
    place = np.minimum(np.searchsorted(have[order], want), len(axis) - 1)
    found = (have[order][place] == want) & (wanted >= 0)
    return np.where(found, order[place], -1)


def source_positions(slots: IntArray, table: SlotTable, axes: Sequence[IntArray]) -> IntArray:
    """(positions, sources): where each position of a merged axis is on every source's axis."""
    occurrence = occurrences(slots)
    columns = [locate(table.classes[slots, s], occurrence, axis) for s, axis in enumerate(axes)]
    return np.stack(columns, axis=1)


def shared_positions(
    slots: IntArray, table: SlotTable, values: Sequence[IntArray]
) -> IntArray | None:
    """The same for a parameter that every row of ``slots`` meets, alike: no class of its own.

    ``values``: each source's classes of the value, its last dim along the parameter. None where
    the rows want different things.
    """
    columns = []
    for s, classes in enumerate(values):
        wanted = table.classes[slots.reshape(-1), s]
        found = locate(wanted, np.zeros_like(wanted), classes.reshape(-1))
        places = np.where(found < 0, -1, found % classes.shape[-1]).reshape(slots.shape)
        if (places != places[0]).any():
            return None
        columns.append(places[0])
    return np.stack(columns, axis=1)


def identity_positions(size: int, membership: Membership, sources: int) -> IntArray:
    """Positions of an axis that carries no labels: the same place in every member."""
    index = np.full((size, sources), -1, np.int64)
    for s in members(membership):
        index[:, s] = np.arange(size)
    return index


def blend(tensors: Sequence[Tensor], *indices: tuple[int, IntArray]) -> Tensor:
    """Mean over the sources that have a row, of their entries picked along each given dim.

    ``indices`` are (dim, positions (n, sources)); the first one says which sources count. An
    entry that a counted source lacks on another dim is zero: a block that doesn't exist there.
    """
    rows_dim, rows = indices[0]
    total: Tensor | None = None
    for s, tensor in enumerate(tensors):
        if (rows[:, s] < 0).all():
            continue
        part = tensor.detach()
        for dim, positions in indices:
            part = _picked(part, dim, positions[:, s])
        total = part if total is None else total + part
    if total is None:
        raise ValueError("no source has any of these channels")
    present = torch.from_numpy((rows >= 0).sum(1)).to(total).clamp_min(1)
    shape = [1] * total.dim()
    shape[rows_dim] = -1
    return total / present.view(shape)


def blend_rows(tensors: Sequence[Tensor], rows: IntArray, local: Sequence[IntArray]) -> Tensor:
    """Mean over sources of grouped weights: rows picked, and inside each row its own places."""
    total: Tensor | None = None
    for s, tensor in enumerate(tensors):
        if (rows[:, s] < 0).all():
            continue
        picked = tensor.detach()[torch.from_numpy(np.maximum(rows[:, s], 0))]
        shape = [*local[s].shape] + [1] * (tensor.dim() - 2)
        where = torch.from_numpy(np.maximum(local[s], 0)).view(shape)
        part = picked.gather(1, where.expand(-1, -1, *tensor.shape[2:]))
        exists = (local[s] >= 0) & (rows[:, s : s + 1] >= 0)
        part = part * torch.from_numpy(exists).to(part).view(shape)
        total = part if total is None else total + part
    assert total is not None
    present = torch.from_numpy((rows >= 0).sum(1)).to(total).clamp_min(1)
    return total / present.view([-1] + [1] * (total.dim() - 1))


def _picked(tensor: Tensor, dim: int, positions: IntArray) -> Tensor:
    where = torch.from_numpy(np.maximum(positions, 0)).to(tensor.device)
    part = tensor.index_select(dim, where)
    missing = positions < 0
    if missing.any():
        shape = [1] * tensor.dim()
        shape[dim] = -1
        part = part.masked_fill(torch.from_numpy(missing).to(part.device).view(shape), 0)
    return part
