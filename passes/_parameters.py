"""Rewriting parameters by themselves: those that a graph reads, and those inside of leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from passes._lanes import Walk, sorted_lanes
from pleas_fx.ir import IntArray, Membership, members
from pleas_fx.lanes import blend, identity_positions, source_positions
from pleas_fx.module_tree import attribute, constants, register


@dataclass(frozen=True, slots=True)
class Site:
    """One layer of the merged network, and what it stands for in every source."""

    node: str  # of the source graph
    emitted: str  # of the merged graph
    source: str  # module path in the sources
    module: str  # module path in the merged network
    membership: Membership
    rows: IntArray  # (outputs, sources): places on the sources' output axes, -1: none
    columns: IntArray | None  # (inputs, sources); None for layers that are per channel
    local: tuple[IntArray, ...] = ()  # grouped layers: per source (rows, inner) places, -1: none
    parts: tuple[tuple[str, int], ...] = ()  # dense layers: the lanes it reads, and their channels
    taught: IntArray | None = None  # as rows, of more sources: whose values are to be met

    @property
    def wanted(self) -> IntArray:
        """(outputs, sources): whose values it is fitted to, and where they are."""
        return self.rows if self.taught is None else self.taught


class Parameters:
    """Emits parameters and buffers, lane by lane."""

    def __init__(self, walk: Walk) -> None:
        self.walk = walk
        self.sites: list[Site] = []
        self._constants = constants(walk.programs[0].module)

    def labelled(self, key: str) -> dict[int, list[IntArray]]:
        """The dims of a parameter that hold planned channels, and the sources' classes there."""
        walk = self.walk
        found = {
            axis.dim: walk.axis_classes(axis) for axis in walk.layouts[0].axes if axis.key == key
        }
        return {dim: own for dim, own in found.items() if own and walk.groups_of([own[0]])}

    def averaged(self, key: str, membership: Membership) -> Tensor:
        """The members' mean of a parameter of a whole lane, in the order of the first member."""
        tensors = [attribute(p.module, key) for p in self.walk.programs]
        if len(members(membership)) == 1:
            return mean(tensors, membership)
        places = [
            (
                dim,
                source_positions(self.walk.slots_of_axes(axes, membership), self.walk.table, axes),
            )
            for dim, axes in self.labelled(key).items()
        ]
        return blend(tensors, *places) if places else mean(tensors, membership)

    def emit(self, node: fx.Node) -> None:
        """A parameter or buffer that the graph reads directly."""
        walk, key = self.walk, str(node.target)
        tensors = [attribute(p.module, key) for p in walk.programs]
        classes = self.labelled(key)
        planned = [g for c in classes.values() for g in walk.groups_of([c[0]])]
        wanted: Sequence[Membership] = walk.whole_first
        if planned:
            found = {lane.membership for g in planned for lane in walk.table.lanes[g] if len(lane)}
            wanted = sorted_lanes(found)
        equal = all(torch.equal(t, tensors[0]) for t in tensors[1:])
        lanes: dict[Membership, fx.Node] = {}
        for S in wanted:
            if equal and not planned and walk.everyone in lanes and S in walk.singles:
                lanes[S] = lanes[walk.everyone]
                continue
            lanes[S] = self._lane(node, tensors, classes, S, len(wanted))
        walk.keep(node, lanes)

    def _lane(
        self,
        node: fx.Node,
        tensors: Sequence[Tensor],
        classes: Mapping[int, list[IntArray]],
        S: Membership,
        lanes: int,
    ) -> fx.Node:
        walk = self.walk
        slots = {dim: self.walk.slots_of_axes(axes, S) for dim, axes in classes.items()}
        if any(len(own) == 0 for own in slots.values()):
            raise walk.mismatch(node, "the axes of a parameter have different lanes")
        places = [
            (dim, source_positions(slots[dim], walk.table, axes)) for dim, axes in classes.items()
        ]
        tensor = blend(tensors, *places) if places else mean(tensors, S)
        name = walk.lane_name(str(node.target), S, lanes == 1 and walk.everyone == S)
        register(walk.root, name, tensor, isinstance(tensors[0], nn.Parameter))
        emitted = walk.emit("get_attr", name)
        if tensor.is_floating_point() and str(node.target) not in self._constants:
            walk.labeller.source(walk.values[emitted])
        walk.labeller.assign(walk.values[emitted], [])
        for dim, ids in slots.items():
            walk.label(walk.values[emitted], dim, ids)
        rows = places[0][1] if places else identity_positions(1, S, walk.sources)
        self.sites.append(Site(node.name, emitted.name, str(node.target), name, S, rows, None))
        return emitted


def mean(tensors: Sequence[Tensor], membership: Membership) -> Tensor:
    """The mean over the members; what isn't a float can't be averaged and is the first one's."""
    own = [tensors[s].detach() for s in members(membership)]
    if not own[0].is_floating_point() or any(t.shape != own[0].shape for t in own):
        return own[0].clone()
    return torch.stack(own).mean(0)
