"""Slots for the labels that a reduction gives to whole blocks of channels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from pleas_fx.ir import Group, GroupId, IntArray
from pleas_fx.lanes import SlotTable

Nests = Sequence[tuple[IntArray, IntArray]]  # (children, parents), flat and aligned


class Blocks:
    """Which block every slot lies in, for the groups of block families."""

    def __init__(self, table: SlotTable, groups: Iterable[Group]) -> None:
        self.table = table
        self.blocks = {g.id: g.blocks for g in groups if g.blocks is not None}
        self.family = np.full(table.size, -1, np.int64)
        self.unit = np.full(table.size, -1, np.int64)
        for (group, membership), start in table.start.items():
            blocks = self.blocks.get(group)
            if blocks is not None:
                own = np.arange(len(table.ids(group, membership)))
                self.family[start : start + len(own)] = blocks.family
                self.unit[start : start + len(own)] = own // blocks.inner

    def names(self, nests: Nests, here: Iterable[GroupId]) -> dict[int, int]:
        """Fresh labels of blocks, and the slots that stand for these blocks in the groups here."""
        stand_ins = {b.family: g for g in here if (b := self.blocks.get(g)) and b.inner == 1}
        found: dict[int, int] = {}
        for child, parent in nests:
            named = (child < self.table.size) & (parent >= self.table.size)
            if named.any():
                found |= self._named(child[named], parent[named], stand_ins)
        return found

    def _named(
        self, child: IntArray, parent: IntArray, stand_ins: dict[int, GroupId]
    ) -> dict[int, int]:
        order = np.argsort(parent, kind="stable")
        labels, first = np.unique(parent[order], return_index=True)
        where = np.stack([self.family, self.unit, self.table.membership])[:, child[order]]
        least = np.minimum.reduceat(where, first, axis=1)
        one = (least == np.maximum.reduceat(where, first, axis=1)).all(0)
        starts = [
            self.table.start.get((stand_ins[family], membership)) if family in stand_ins else None
            for family, _, membership in least.T.tolist()
        ]
        return {
            int(label): start + int(unit)
            for label, start, unit, ok in zip(labels, starts, least[1], one, strict=True)
            if ok and start is not None
        }


def renamed(labels: Tensor, names: dict[int, int]) -> Tensor:
    """The same labels, blocks under their slots."""
    old = torch.tensor(sorted(names))
    new = torch.tensor([names[k] for k in sorted(names)])
    at = torch.searchsorted(old, labels.contiguous()).clamp_max(len(old) - 1)
    return torch.where(old[at] == labels, new[at], labels)
