"""Rewriting layers with parameters: each lane gets a module with the block average as weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, fx, nn

from passes._lanes import Value, Walk, sorted_lanes, split
from passes._parameters import Parameters, Site, mean
from pleas_fx.ir import Axis, IntArray, Membership, members
from pleas_fx.labels import compact, pattern
from pleas_fx.lanes import (
    blend,
    blend_rows,
    identity_positions,
    shared_positions,
    source_positions,
)
from pleas_fx.module_tree import attach, replace
from pleas_fx.rules.modules import (
    Channelwise,
    Contraction,
    channelwise,
    contraction,
    is_depthwise,
    is_positionwise,
    resized_channelwise,
    resized_contraction,
)


@dataclass(frozen=True, slots=True)
class Read:
    """What a lane of a layer reads."""

    node: fx.Node
    parts: tuple[tuple[str, int], ...]  # the lanes joined in it: node and number of channels
    columns: IntArray  # (inputs, sources): places on the sources' input axes


class Layers:
    """Emits parametric modules and parameters, lane by lane."""

    def __init__(self, walk: Walk) -> None:
        self.walk = walk
        self.parameters = Parameters(walk)
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
        return self.walk.axis_classes(Axis(f"{node.target}.{name}", dim))

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
        """Run a new module; its output carries the slots its rows were made for.

        Those along other dims than the channels' stay.
        """
        emitted = self.walk.emit("call_module", name, (source,))
        value = self.walk.values[emitted]
        kept = [c for c in self.walk.labeller.of(value) if self._leaves(c, channel)]
        self.walk.labeller.assign(value, kept)
        if slots is not None:
            self.walk.label(value, channel % value.dim(), slots)
        return emitted

    def _leaves(self, labels: Tensor, channel: int) -> bool:
        """Whether a coordinate of a result is of slots that the layer didn't touch."""
        own = bool((compact(labels) < self.walk.table.size).all())
        return own and channel % labels.dim() not in pattern(labels)

    def _input_slots(self, node: fx.Node, emitted: fx.Node, channel: int) -> IntArray:
        slots = self.walk.slots_along(emitted, channel)
        if slots is None or (slots < 0).any() or (slots >= self.walk.table.size).any():
            raise self.walk.mismatch(node, "reads channels whose origin isn't known")
        return slots

    # -- contractions ------------------------------------------------------------------------

    def _dense(self, node: fx.Node, module: nn.Module, entry: Contraction, x: Value) -> None:
        walk, lanes = self.walk, {}
        if self._slides(node, entry, x) and self._stays(node, entry):
            self._beside(node, module, entry, x)
            return
        outputs = self._axes(node, "weight", entry.out_dim)
        wanted = self._output_lanes(outputs)
        if outputs is None and self._slides(node, entry, x):
            wanted = [S for S in wanted if S in x.lanes and walk.is_whole(x.groups, S)]
            if not wanted:
                raise walk.mismatch(node, "slides over channels, and needs them all")
        elif outputs is None and self._stays(node, entry):
            wanted = sorted_lanes(x.lanes)
        reads = {S: self._read(node, entry, x, S) for S in wanted}
        for S, read in reads.items():
            slots = None if outputs is None else self.walk.slots_of_axes(outputs, S)
            lanes[S] = self._dense_lane(node, module, entry, read, S, slots, len(wanted))
            walk.verify(node, S, lanes[S])
        walk.keep(node, lanes)

    def _stays(self, node: fx.Node, entry: Contraction) -> bool:
        """Whether the channels are still there in the result, beside what the layer contracts."""
        return any(
            size > 1
            for labels in self.walk.classes(node, 0)
            for dim, size in enumerate(labels.shape)
            if dim != entry.channel % labels.ndim
        )

    def _beside(self, node: fx.Node, module: nn.Module, entry: Contraction, x: Value) -> None:
        """The same layer for every channel: every lane by itself, with its members' mean."""
        walk, lanes = self.walk, {}
        outputs = self._axes(node, "weight", entry.out_dim)
        for S, operand in x.lanes.items():
            layer = copy.deepcopy(module)
            for name in layer.state_dict():
                if outputs is None:
                    replace(layer, name, mean(self._state(node, name), S))
                else:
                    dim = entry.out_dim if name == "weight" else 0
                    self._own_channels(node, layer, name, dim, outputs, S)
            name = self._place(node, layer, S, len(x.lanes))
            lanes[S] = walk.emit("call_module", name, (operand,))
            walk.verify(node, S, lanes[S])
        walk.keep(node, lanes)

    def _own_channels(
        self,
        node: fx.Node,
        layer: nn.Module,
        name: str,
        dim: int,
        outputs: Sequence[IntArray],
        S: Membership,
    ) -> None:
        """Channels that a layer adds to those it leaves alone: both in the same lane."""
        walk = self.walk
        if not walk.is_whole(walk.groups_of([outputs[0]]), S):
            raise walk.mismatch(node, "its own channels are in other lanes than those it keeps")
        slots = walk.slots_of_axes(outputs, S)
        rows = source_positions(slots, walk.table, outputs)
        replace(layer, name, blend(self._state(node, name), (dim, rows)))
        walk.label(getattr(layer, name), dim, slots)

    def _output_lanes(self, outputs: list[IntArray] | None) -> list[Membership]:
        if outputs is None:
            return list(self.walk.whole_first)
        groups = self.walk.groups_of([outputs[0]])
        return sorted_lanes(
            {lane.membership for g in groups for lane in self.walk.table.lanes[g] if len(lane)}
        )

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
        slots = self.walk.slots_of_axes(outputs, S)
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
            (self._alike if self._passes(node, module) else self._opaque)(node, module)
            return
        if node.name in walk.symmetries[0].coupled:
            self._coupled(node, entry, x, channel)
            return
        lanes = {}
        for S in sorted_lanes(x.lanes):
            alone = len(x.lanes) == 1
            lanes[S] = self._channel_lane(node, entry, x.lanes[S], channel, S, alone)
            walk.verify(node, S, lanes[S])
        walk.keep(node, lanes)

    def _passes(self, node: fx.Node, module: nn.Module) -> bool:
        """Whether what has channels along another dim goes through position by position."""
        own = (self.parameters.labelled(f"{node.target}.{name}") for name in module.state_dict())
        return is_positionwise(module) and not any(own)

    def _alike(self, node: fx.Node, module: nn.Module) -> None:
        """One in every lane, with the members' mean of what isn't of any channel."""
        walk, lanes = self.walk, {}
        x = walk.operands(node)[0]
        for S in sorted_lanes(x.lanes):
            name = self._place(node, self._averaged(node, module, S), S, walk.sources + 1)
            lanes[S] = walk.emit("call_module", name, (x.lanes[S],))
            walk.verify_or_follow(node, S, lanes[S])
        walk.keep(node, lanes)

    def _coupled(self, node: fx.Node, entry: Channelwise, x: Value, channel: int) -> None:
        """A norm over all channels: one a source, on what the source has (see Nodes)."""
        walk = self.walk
        alone = set(x.lanes) == {walk.everyone}
        made: dict[Membership, tuple[fx.Node, list[Membership]]] = {}
        for T in (walk.everyone,) if alone else walk.singles:
            source, joined = walk.gather(x, T, channel)
            emitted = self._channel_lane(node, entry, source, channel, T, alone)
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
        entry: Channelwise,
        source: fx.Node,
        channel: int,
        S: Membership,
        alone: bool,
    ) -> fx.Node:
        walk = self.walk
        first = walk.programs[members(S)[0]]
        before = first.shapes[node.all_input_nodes[0].name][channel]
        slots = self._input_slots(node, source, channel)
        module = first.module.get_submodule(str(node.target))
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
                replace(layer, name, mean(self._state(node, name), S))
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

    def _averaged(self, node: fx.Node, module: nn.Module, S: Membership) -> nn.Module:
        """A copy with the members' mean of every parameter."""
        layer = copy.deepcopy(module)
        for name, tensor in list(layer.state_dict(keep_vars=True).items()):
            if tensor.is_floating_point():
                replace(layer, name, self.parameters.averaged(f"{node.target}.{name}", S))
        return layer

    def _opaque(self, node: fx.Node, module: nn.Module) -> None:
        walk, lanes = self.walk, {}
        axes = [
            classes[0]
            for name in module.state_dict()
            for classes in self.parameters.labelled(f"{node.target}.{name}").values()
        ]
        inside = walk.groups_of(axes)
        for S, reads in walk.whole_reads(node).items():
            averaged = len(members(S)) > 1
            if averaged and (not walk.is_whole(inside, S) or any(c.ndim > 1 for c in axes)):
                continue
            name = self._place(node, self._averaged(node, module, S), S, walk.sources + 1)
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), reads.__getitem__)
            lanes[S] = walk.emit("call_module", name, args, kwargs)
            walk.relabel(node, S, lanes[S])
        if not lanes:
            raise walk.mismatch(node, f"a {type(module).__name__} needs all channels")
        walk.keep(node, lanes)
