"""Rewriting layers with parameters: each lane gets a module with the block average as weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from passes._lanes import Value, Walk, sorted_lanes, split
from pleas_fx.ir import Axis, IntArray, Membership, members
from pleas_fx.labels import compact, pattern
from pleas_fx.lanes import (
    blend,
    blend_rows,
    identity_positions,
    shared_positions,
    source_positions,
)
from pleas_fx.module_tree import attach, attribute, register, replace
from pleas_fx.rules.modules import (
    Channelwise,
    Contraction,
    channelwise,
    contraction,
    is_depthwise,
    resized_channelwise,
    resized_contraction,
)


@dataclass(frozen=True, slots=True)
class Read:
    """What a lane of a layer reads."""

    node: fx.Node
    parts: tuple[tuple[str, int], ...]  # the lanes joined in it: node and number of channels
    columns: IntArray  # (inputs, sources): places on the sources' input axes


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


class Layers:
    """Emits parametric modules and parameters, lane by lane."""

    def __init__(self, walk: Walk) -> None:
        self.walk = walk
        self.sites: list[Site] = []
        self._calls: dict[str, int] = {}
        self._states = [p.module.state_dict(keep_vars=True) for p in walk.programs]

    def handles(self, node: fx.Node) -> bool:
        """Whether a module call has parameters or sizes that a merge has to rebuild."""
        module = self._module(node, 0)
        has_state = bool(list(module.parameters()) or list(module.buffers()))
        return has_state or channelwise(module) is not None

    def call(self, node: fx.Node) -> None:
        """Emit every lane of a layer."""
        module = self._module(node, 0)
        operand = self._operand(node)
        entry = contraction(module)
        self._calls[str(node.target)] = self._calls.get(str(node.target), 0) + 1
        if entry is not None and operand is not None:
            if int(getattr(module, "groups", 1)) > 1 and operand.labelled:
                self._grouped(node, module, entry, operand)
            elif int(getattr(module, "groups", 1)) > 1:
                self._opaque(node, module)
            else:
                self._dense(node, module, entry, operand)
            return
        per_channel = channelwise(module)
        if per_channel is None or operand is None or not operand.labelled:
            self._opaque(node, module)
        else:
            self._channelwise(node, module, per_channel, operand)

    # -- shared steps ------------------------------------------------------------------------

    def _module(self, node: fx.Node, source: int) -> nn.Module:
        return self.walk.programs[source].module.get_submodule(str(node.target))

    def _operand(self, node: fx.Node) -> Value | None:
        arguments = node.all_input_nodes
        return self.walk.env[arguments[0].name] if len(arguments) == 1 else None

    def _state(self, node: fx.Node, name: str) -> list[Tensor]:
        return [state[f"{node.target}.{name}"] for state in self._states]

    def _axes(self, node: fx.Node, name: str, dim: int) -> list[IntArray] | None:
        axis = Axis(f"{node.target}.{name}", dim)
        found = [layout.axes.get(axis) for layout in self.walk.layouts]
        return None if any(f is None for f in found) else [f for f in found if f is not None]

    def _place(self, node: fx.Node, module: nn.Module, membership: Membership, lanes: int) -> str:
        alone = lanes == 1 and membership == self.walk.everyone
        name = self.walk.lane_name(str(node.target), membership, alone)
        count = self._calls[str(node.target)]
        name = name if count == 1 else f"{name}_call{count}"
        attach(self.walk.root, name, module)
        return name

    def _invoke(
        self, node: fx.Node, name: str, source: fx.Node, slots: IntArray | None, channel: int
    ) -> fx.Node:
        """Run a new module; its output carries the slots its rows were made for."""
        emitted = self.walk.emit("call_module", name, (source,))
        value = self.walk.values[emitted]
        self.walk.labeller.assign(value, [])
        if slots is not None:
            self.walk.label(value, channel % value.dim(), slots)
        return emitted

    def _input_slots(self, node: fx.Node, emitted: fx.Node, channel: int) -> IntArray:
        slots = self.walk.slots_along(emitted, channel)
        if slots is None or (slots < 0).any() or (slots >= self.walk.table.size).any():
            raise self.walk.mismatch(node, "reads channels whose origin isn't known")
        return slots

    # -- contractions ------------------------------------------------------------------------

    def _dense(self, node: fx.Node, module: nn.Module, entry: Contraction, x: Value) -> None:
        walk, lanes = self.walk, {}
        outputs = self._axes(node, "weight", entry.out_dim)
        wanted = self._output_lanes(outputs)
        if outputs is None and self._slides(node, entry, x):
            wanted = [S for S in wanted if S in x.lanes and walk.is_whole(x.groups, S)]
            if not wanted:
                raise walk.mismatch(node, "slides over channels, and needs them all")
        reads = {S: self._read(node, entry, x, S) for S in wanted}
        for S, read in reads.items():
            slots = None if outputs is None else self._output_slots(outputs, S)
            lanes[S] = self._dense_lane(node, module, entry, read, S, slots, len(wanted))
            walk.verify(node, S, lanes[S])
        walk.keep(node, lanes)

    def _output_lanes(self, outputs: list[IntArray] | None) -> list[Membership]:
        if outputs is None:
            return list(self.walk.whole_first)
        groups = self.walk.groups_of([outputs[0]])
        return sorted_lanes(
            {lane.membership for g in groups for lane in self.walk.table.lanes[g] if len(lane)}
        )

    def _output_slots(self, outputs: list[IntArray], membership: Membership) -> IntArray:
        """The lane's slots in the order of the first member's axis: its structure survives."""
        found = []
        for s in members(membership):
            slots = self.walk.slots[s, membership][outputs[s]]
            found.append(slots[slots >= 0])
        rest = [np.setdiff1d(more, found[0]) for more in found[1:]]
        return np.concatenate([found[0], *rest])

    def _dense_lane(
        self,
        node: fx.Node,
        module: nn.Module,
        entry: Contraction,
        read: Read,
        membership: Membership,
        slots: IntArray | None,
        lanes: int,
    ) -> fx.Node:
        columns = read.columns
        rows = self._rows(node, "weight", entry.out_dim, slots, membership)
        weight = blend(self._state(node, "weight"), (entry.out_dim, rows), (entry.in_dim, columns))
        layer: Any = resized_contraction(module, len(columns), len(rows), 1)
        layer.weight = nn.Parameter(weight.contiguous())
        if layer.bias is not None:
            layer.bias = nn.Parameter(blend(self._state(node, "bias"), (0, rows)))
        name = self._place(node, layer, membership, lanes)
        emitted = self._invoke(node, name, read.node, slots, entry.channel)
        self._site(node, emitted, name, membership, rows, columns, parts=read.parts)
        return emitted

    def _slides(self, node: fx.Node, entry: Contraction, x: Value) -> bool:
        """Whether channels lie along an axis that a convolution takes for a spatial one (ECA)."""
        operand = node.all_input_nodes[0]
        rank = len(self.walk.programs[0].shapes[operand.name])
        return x.labelled and not self._labelled_on(operand, entry.channel % rank)

    def _read(self, node: fx.Node, entry: Contraction, x: Value, membership: Membership) -> Read:
        """The joined input of a lane, and where its channels are in the sources."""
        walk = self.walk
        operand = node.all_input_nodes[0]
        inputs = self._axes(node, "weight", entry.in_dim)
        shape = walk.programs[0].shapes[operand.name]
        channel = entry.channel % len(shape)
        if not x.labelled or inputs is None or not self._labelled_on(operand, channel):
            picked = walk.pick(x, membership)
            if picked is None:
                raise walk.mismatch(node, "reads single channels of a lane")
            size = walk.values[picked].shape[channel]
            columns = identity_positions(size, walk.everyone, walk.sources)
            return Read(picked, ((picked.name, size),), columns)
        gathered, readable = walk.gather(x, membership, channel)
        slots = self._input_slots(node, gathered, channel)
        nodes = [x.lanes[S] for S in readable]
        parts = tuple((n.name, int(walk.values[n].shape[channel])) for n in nodes)
        return Read(gathered, parts, source_positions(slots, walk.table, inputs))

    def _labelled_on(self, operand: fx.Node, channel: int) -> bool:
        return any(c.shape[channel] > 1 for c in self.walk.classes(operand, 0))

    def _rows(
        self, node: fx.Node, name: str, dim: int, slots: IntArray | None, membership: Membership
    ) -> IntArray:
        axes = self._axes(node, name, dim)
        if slots is None or axes is None:
            size = self._state(node, name)[members(membership)[0]].shape[dim]
            return identity_positions(size, membership, self.walk.sources)
        return source_positions(slots, self.walk.table, axes)

    def _site(
        self,
        node: fx.Node,
        emitted: fx.Node,
        name: str,
        membership: Membership,
        rows: IntArray,
        columns: IntArray | None,
        local: tuple[IntArray, ...] = (),
        parts: tuple[tuple[str, int], ...] = (),
    ) -> None:
        own, source = emitted.name, str(node.target)
        self.sites.append(
            Site(node.name, own, source, name, membership, rows, columns, local, parts)
        )

    # -- grouped and depthwise convolutions ----------------------------------------------------

    def _grouped(self, node: fx.Node, module: nn.Module, entry: Contraction, x: Value) -> None:
        walk, lanes = self.walk, {}
        for S in sorted_lanes(x.lanes):
            if is_depthwise(module):
                lanes[S] = self._depthwise_lane(node, module, x.lanes[S], S, len(x.lanes))
            else:
                lanes[S] = self._grouped_lane(node, module, entry, x.lanes[S], S, len(x.lanes))
            walk.verify(node, S, lanes[S])
        walk.keep(node, lanes)

    def _depthwise_lane(
        self, node: fx.Node, module: nn.Module, source: fx.Node, S: Membership, lanes: int
    ) -> fx.Node:
        slots = self._input_slots(node, source, 1)
        rows = self._rows(node, "weight", 0, slots, S)
        layer: Any = resized_contraction(module, len(slots), len(slots), len(slots))
        layer.weight = nn.Parameter(blend(self._state(node, "weight"), (0, rows)))
        if layer.bias is not None:
            layer.bias = nn.Parameter(blend(self._state(node, "bias"), (0, rows)))
        name = self._place(node, layer, S, lanes)
        emitted = self._invoke(node, name, source, slots, 1)
        self._site(node, emitted, name, S, rows, None)
        return emitted

    def _grouped_lane(
        self,
        node: fx.Node,
        module: Any,
        entry: Contraction,
        source: fx.Node,
        S: Membership,
        lanes: int,
    ) -> fx.Node:
        """Whole blocks only: the weight's rows, and inside each row the block's own places."""
        walk = self.walk
        if entry.out_dim != 0:
            raise walk.mismatch(node, "grouped transposed convolutions stay whole")
        inner, outer = module.weight.shape[1], module.out_channels // module.groups
        slots_in = self._input_slots(node, source, 1)
        outputs = self._axes(node, "weight", 0)
        if len(slots_in) % inner or outputs is None:
            raise walk.mismatch(node, "the channels don't fill whole blocks")
        blocks = len(slots_in) // inner
        slots = self._output_slots(outputs, S)
        if len(slots) != blocks * outer:
            raise walk.mismatch(node, "blocks are incomplete")
        rows = source_positions(slots, walk.table, outputs)
        local = self._local(node, slots_in.reshape(blocks, inner), rows, outer)
        layer: Any = resized_contraction(module, len(slots_in), len(slots), blocks)
        layer.weight = nn.Parameter(blend_rows(self._state(node, "weight"), rows, local))
        if layer.bias is not None:
            layer.bias = nn.Parameter(blend(self._state(node, "bias"), (0, rows)))
        name = self._place(node, layer, S, lanes)
        emitted = self._invoke(node, name, source, slots, 1)
        self._site(node, emitted, name, S, rows, None, local)
        return emitted

    def _local(
        self, node: fx.Node, blocks: IntArray, rows: IntArray, outer: int
    ) -> tuple[IntArray, ...]:
        """Per source, where each row finds the channels of its block; -1 where it doesn't."""
        walk = self.walk
        axes = self._axes(node, "weight", 1)
        found = []
        for s in range(walk.sources):
            wanted = walk.table.classes[np.repeat(blocks, outer, axis=0), s]
            if axes is None:  # one input channel a block
                found.append(np.where(rows[:, s : s + 1] >= 0, 0, -1))
                continue
            own = axes[s][np.maximum(rows[:, s], 0)]
            match = wanted[:, :, None] == own[:, None, :]
            missing = ~match.any(2) & (rows[:, s] >= 0)[:, None] & (wanted >= 0)
            if missing.any():
                raise walk.mismatch(node, "blocks of input and output channels differ")
            found.append(np.where(match.any(2), match.argmax(2), -1))
        return tuple(found)

    # -- per-channel layers --------------------------------------------------------------------

    def _channelwise(self, node: fx.Node, module: nn.Module, entry: Channelwise, x: Value) -> None:
        walk = self.walk
        operand = node.all_input_nodes[0]
        rank = len(walk.programs[0].shapes[operand.name])
        channel = entry.channel % rank
        if not self._labelled_on(operand, channel):
            self._opaque(node, module)
            return
        if node.name in walk.symmetries[0].coupled:
            self._coupled(node, module, entry, x, channel)
            return
        lanes = {}
        for S in sorted_lanes(x.lanes):
            alone = len(x.lanes) == 1
            lanes[S] = self._channel_lane(node, module, entry, x.lanes[S], channel, S, alone)
            walk.verify(node, S, lanes[S])
        walk.keep(node, lanes)

    def _coupled(
        self, node: fx.Node, module: nn.Module, entry: Channelwise, x: Value, channel: int
    ) -> None:
        """A norm over all channels: one a source, on what the source has (see Nodes)."""
        walk = self.walk
        alone = set(x.lanes) == {walk.everyone}
        made: dict[Membership, tuple[fx.Node, list[Membership]]] = {}
        for T in (walk.everyone,) if alone else walk.singles:
            source, joined = walk.gather(x, T, channel)
            emitted = self._channel_lane(node, module, entry, source, channel, T, alone)
            made[T] = (emitted, joined)
        lanes = {}
        for S in sorted_lanes(x.lanes):
            parts = [made[T] for T in ((S,) if alone else split(S))]
            nodes = [walk.part(x, emitted, joined, S, channel) for emitted, joined in parts]
            lanes[S] = walk.average(nodes)
            walk.verify(node, S, lanes[S])
        walk.keep(node, lanes)

    def _channel_lane(
        self,
        node: fx.Node,
        module: nn.Module,
        entry: Channelwise,
        source: fx.Node,
        channel: int,
        S: Membership,
        alone: bool,
    ) -> fx.Node:
        walk = self.walk
        before = walk.programs[0].shapes[node.all_input_nodes[0].name][channel]
        slots = self._input_slots(node, source, channel)
        layer = resized_channelwise(module, entry, len(slots), before)
        rows = identity_positions(len(slots), S, walk.sources)
        for name, tensor in list(layer.state_dict(keep_vars=True).items()):
            dim = tensor.dim() - 1
            axes = self._axes(node, name, dim) if tensor.dim() else None
            if axes is not None and tensor.shape[dim] == before:
                rows = source_positions(slots, walk.table, axes)
                shared = bool((rows < 0).all())
                if shared:
                    rows = self._shared_rows(node, source, channel)
                replace(layer, name, blend(self._state(node, name), (dim, rows)))
                if shared:
                    own, s = getattr(layer, name), members(S)[0]
                    walk.label(own, dim, walk.slots[s, S][axes[s][rows[:, s]]])
            elif tensor.is_floating_point():
                replace(layer, name, _mean(self._state(node, name), S))
        name = self._place(node, layer, walk.everyone if alone else S, 1 if alone else 2)
        emitted = walk.emit("call_module", name, (source,))
        self._site(node, emitted, name, S, rows, None)
        return emitted

    def _shared_rows(self, node: fx.Node, source: fx.Node, channel: int) -> IntArray:
        """Rows of a parameter that all blocks of a value share."""
        walk, operand = self.walk, node.all_input_nodes[0]
        (labels,) = (c for c in walk.labeller.of(walk.values[source]) if channel in pattern(c))
        slots = compact(labels).movedim(channel, -1).flatten(0, -2).numpy()
        values = [
            np.moveaxis(c, channel, -1)
            for s in range(walk.sources)
            for c in walk.classes(operand, s)
            if c.shape[channel] > 1
        ]
        rows = shared_positions(slots, walk.table, values)
        if rows is None:
            raise walk.mismatch(node, "blocks that share a parameter differ in their channels")
        return rows

    # -- layers that stay whole ----------------------------------------------------------------

    def _opaque(self, node: fx.Node, module: nn.Module) -> None:
        walk, lanes = self.walk, {}
        groups = walk.operand_groups(node) | walk.result_groups(node)
        for S in walk.whole_first:
            if not walk.is_whole(groups, S):
                continue
            if len(members(S)) > 1 and any(
                c[0].ndim > 1
                for name in module.state_dict()
                for c in self._labelled(f"{node.target}.{name}").values()
            ):
                continue
            picked = [walk.pick(v, S) for v in walk.operands(node)]
            if any(p is None for p in picked):
                continue
            layer = copy.deepcopy(module)
            for name, tensor in list(layer.state_dict(keep_vars=True).items()):
                if tensor.is_floating_point():
                    replace(layer, name, self._averaged(f"{node.target}.{name}", S))
            name = self._place(node, layer, S, walk.sources + 1)
            chosen = dict(zip(node.all_input_nodes, picked, strict=True))
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), chosen.__getitem__)
            lanes[S] = walk.emit("call_module", name, args, kwargs)
            walk.relabel(node, S, lanes[S])
        if not lanes:
            raise walk.mismatch(node, f"a {type(module).__name__} needs all channels")
        walk.keep(node, lanes)

    def _labelled(self, key: str) -> dict[int, list[IntArray]]:
        """The dims of a parameter that hold planned channels, and the sources' classes there."""
        layouts = self.walk.layouts
        own = [axis for axis in layouts[0].axes if axis.key == key]
        return {
            axis.dim: [layout.axes[axis] for layout in layouts]
            for axis in own
            if self.walk.groups_of([layouts[0].axes[axis]])
        }

    def _averaged(self, key: str, membership: Membership) -> Tensor:
        """The members' mean of a parameter of a whole lane, in the order of the first member."""
        tensors = [attribute(p.module, key) for p in self.walk.programs]
        places = [
            (dim, source_positions(self._output_slots(axes, membership), self.walk.table, axes))
            for dim, axes in self._labelled(key).items()
        ]
        if len(members(membership)) == 1 or not places:
            return _mean(tensors, membership)
        return blend(tensors, *places)

    def parameter(self, node: fx.Node) -> None:
        """A parameter or buffer that the graph reads directly."""
        walk, key = self.walk, str(node.target)
        tensors = [attribute(p.module, key) for p in walk.programs]
        classes = self._labelled(key)
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
            lanes[S] = self._parameter_lane(node, tensors, classes, S, len(wanted))
        walk.keep(node, lanes)

    def _parameter_lane(
        self,
        node: fx.Node,
        tensors: Sequence[Tensor],
        classes: Mapping[int, list[IntArray]],
        S: Membership,
        lanes: int,
    ) -> fx.Node:
        walk = self.walk
        slots = {dim: self._output_slots(axes, S) for dim, axes in classes.items()}
        if any(len(own) == 0 for own in slots.values()):
            raise walk.mismatch(node, "the axes of a parameter have different lanes")
        places = [
            (dim, source_positions(slots[dim], walk.table, axes)) for dim, axes in classes.items()
        ]
        tensor = blend(tensors, *places) if places else _mean(tensors, S)
        name = walk.lane_name(str(node.target), S, lanes == 1 and walk.everyone == S)
        register(walk.root, name, tensor, isinstance(tensors[0], nn.Parameter))
        emitted = walk.emit("get_attr", name)
        walk.labeller.source(walk.values[emitted])
        walk.labeller.assign(walk.values[emitted], [])
        for dim, ids in slots.items():
            walk.label(walk.values[emitted], dim, ids)
        rows = places[0][1] if places else identity_positions(1, S, walk.sources)
        self.sites.append(Site(node.name, emitted.name, str(node.target), name, S, rows, None))
        return emitted


def _mean(tensors: Sequence[Tensor], membership: Membership) -> Tensor:
    """The mean over the members; what isn't a float can't be averaged and is the first one's."""
    own = [tensors[s].detach() for s in members(membership)]
    if not own[0].is_floating_point() or any(t.shape != own[0].shape for t in own):
        return own[0].clone()
    return torch.stack(own).mean(0)
