"""Rewriting nodes without parameters: inputs, outputs, functions, methods, stateless modules."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from passes._lanes import Mismatch, Value, Walk, sorted_lanes, split
from pleas_fx.ir import BoolArray, IntArray, Membership, members
from pleas_fx.labels import NONE
from pleas_fx.module_tree import attach
from pleas_fx.rules.relayout import RELAYOUT, SPLIT_TARGETS, SPLITS, STRETCHES, Counter

CATS = (torch.cat, torch.concat, torch.concatenate)


class Nodes:
    """Emits one node a lane."""

    def __init__(self, walk: Walk) -> None:
        self.walk = walk
        self.output_names: tuple[str, ...] = ()

    # -- ends --------------------------------------------------------------------------------

    def placeholder(self, node: fx.Node) -> None:
        """Inputs are shared by all sources."""
        walk = self.walk
        index, inputs = walk.inputs, walk.programs[0].inputs
        walk.inputs += 1
        emitted = walk.graph.create_node("placeholder", str(node.target), node.args)
        walk.values[emitted] = inputs[index][:1] if index < len(inputs) else node.args[0]
        if isinstance(walk.values[emitted], Tensor):
            walk.labeller.source(walk.values[emitted])
        walk.made[node.name].append(emitted)
        walk.env[node.name] = Value(dict.fromkeys(walk.whole_first, emitted), False)

    def output(self, node: fx.Node, heads: str) -> None:
        """Separate heads: a tuple with every source's output; otherwise one output for all."""
        walk = self.walk
        if heads == "separate":
            result: Any = tuple(self._pick_output(node, S) for S in walk.singles)
            names = [f"output_{chr(ord('a') + s)}" for s in range(walk.sources)]
        else:
            result = self._pick_output(node, walk.everyone)
            names = ["output"]
        walk.graph.output(result)
        self.output_names = _output_names(result, heads, names)

    def _pick_output(self, node: fx.Node, membership: Membership) -> Any:
        def load(n: fx.Node) -> fx.Node:
            picked = self.walk.pick(self.walk.env[n.name], membership)
            if picked is None:
                raise self.walk.mismatch(node, "an output isn't whole")
            return picked

        return fx.node.map_arg(node.args[0], load)

    # -- calls -------------------------------------------------------------------------------

    def call(self, node: fx.Node) -> None:
        """Choose how a call treats channels, from what the label analysis saw."""
        walk = self.walk
        operands = walk.operands(node)
        if not any(v.labelled for v in operands):
            self._unlabelled(node, operands)
        elif node.target in CATS and not isinstance(_first(node), fx.Node):
            self._concatenate(node)
        elif self._several_dims(node):
            self._opaque(node)
        elif node.name in walk.symmetries[0].coupled:
            self._coupled(node, operands)
        elif self._vanishes(node):
            self._vanished(node)
        else:
            self._lane_wise(node, operands)

    def _vanishes(self, node: fx.Node) -> bool:
        """A tensor result without labels, from labelled operands."""
        is_tensor = node.name in self.walk.programs[0].shapes
        return is_tensor and not self.walk.labelled(node)

    def _vanished(self, node: fx.Node) -> None:
        """One channel by itself has no labels: it is in the lanes that hold it."""
        walk = self.walk
        lanes = {}
        if self._is_part(node):
            for S in walk.env[node.all_input_nodes[0].name].lanes:
                loaded = self._load(node, S)
                assert loaded is not None
                lanes[S] = self._relaid(node, S, *loaded)
        held = {S: n for S, n in lanes.items() if walk.values[n].numel()}
        if {s for S in held for s in members(S)} == set(members(walk.everyone)):
            walk.keep(node, held)
        else:
            self._opaque(node)

    def _is_part(self, node: fx.Node) -> bool:
        """Whether a node takes a stretch of one operand, or of what another cut it into."""
        if node.target not in STRETCHES or len(node.all_input_nodes) != 1:
            return False
        shapes, operand = self.walk.programs[0].shapes, node.all_input_nodes[0]
        if operand.name not in shapes:
            return operand.target in SPLITS
        return len(shapes[node.name]) == len(shapes[operand.name])

    def _emit(self, node: fx.Node, args: Any, kwargs: Any) -> fx.Node:
        if node.op == "call_module":
            self._share_module(str(node.target))
        target = node.target
        return self.walk.emit(node.op, target, args, kwargs, name=None)

    def _share_module(self, target: str) -> None:
        owner = self.walk.programs[0].module
        if not _has(self.walk.root, target):
            attach(self.walk.root, target, copy.deepcopy(owner.get_submodule(target)))

    def _load(self, node: fx.Node, membership: Membership) -> tuple[Any, Any] | None:
        """The arguments of a lane; None when an operand lacks it."""
        missing: list[fx.Node] = []

        def load(n: fx.Node) -> fx.Node:
            picked = self.walk.pick(self.walk.env[n.name], membership)
            if picked is None:
                missing.append(n)
                return n
            return picked

        loaded = fx.node.map_arg(self.walk.arguments(node, membership), load)
        return None if missing else loaded

    def _unlabelled(self, node: fx.Node, operands: list[Value]) -> None:
        walk = self.walk
        wanted: list[Membership] = [
            S for S in walk.whole_first if all(_exact(v, S) for v in operands)
        ]
        lanes = {}
        several = walk.whole_first if walk.alike(node) else walk.singles
        for S in wanted or several:
            loaded = self._load(node, S)
            if loaded is None:
                raise walk.mismatch(node, "an operand has no such lane")
            lanes[S] = self._emit(node, *loaded)
            self._restored(node, S, lanes[S])
        walk.keep(node, _collapse(walk, lanes))

    def _restored(self, node: fx.Node, membership: Membership, emitted: fx.Node) -> None:
        """What is taken out of a whole tuple gets the labels that the source has for it."""
        if not self.walk.whole.isdisjoint(emitted.all_input_nodes):
            self.walk.relabel(node, membership, emitted)

    def _lane_wise(self, node: fx.Node, operands: list[Value]) -> None:
        walk = self.walk
        labelled = [v for v in operands if v.labelled]
        planned = [v for v in labelled if v.groups] or labelled  # else in all lanes: a fixed kernel
        lanes = {}
        for S in sorted_lanes({S for v in planned for S in v.lanes}):
            loaded = self._load(node, S)
            if loaded is None:
                raise walk.mismatch(node, "operands don't have the same lanes")
            lanes[S] = self._relaid(node, S, *loaded)
            self._restored(node, S, lanes[S])
            walk.verify_or_follow(node, S, lanes[S])
        walk.keep(node, _collapse(walk, lanes))

    def _relaid(self, node: fx.Node, membership: Membership, args: Any, kwargs: Any) -> fx.Node:
        """Emit with literal sizes restated for the lane."""
        rule = RELAYOUT.get(node.target)
        operand = next(iter(node.all_input_nodes), None)
        if rule is None or operand is None or node.op == "call_module":
            return self._emit(node, args, kwargs)
        kept = self._kept(operand, membership), self._kept(node, membership)
        number = partial(self.walk.number, source=members(membership)[0])
        counter = Counter(*kept, number, self.walk.value)
        new_args, new_kwargs = rule(tuple(args), dict(kwargs), counter)
        target = node.target
        if target in SPLIT_TARGETS and new_args != tuple(args):
            target = SPLIT_TARGETS[target]
        return self.walk.emit(node.op, target, new_args, new_kwargs)

    def _kept(self, node: fx.Node, membership: Membership) -> tuple[IntArray, ...]:
        source = members(membership)[0]
        lookup = self.walk.slots.get((source, membership))
        if lookup is None:
            return ()
        return tuple(
            ((lookup[c] >= 0) | ~self._planned[source][c]).astype(np.int64)
            for c in self.walk.classes(node, source)
            if self.walk.groups_of([c], source)
        )

    @cached_property
    def _planned(self) -> list[BoolArray]:
        """Per source and class, whether a plan has slots for it: all else is in every lane.

        The last entry is that of no class.
        """
        groups = np.array([*self.walk.table.lanes], np.int64)
        return [np.append(np.isin(own.group, groups), False) for own in self.walk.layouts]

    def _several_dims(self, node: fx.Node) -> bool:
        """Whether channels are mixed that lie along several dims of one operand (its weights)."""
        if node.name not in self.walk.symmetries[0].coupled:
            return False
        return any(len(self._dims(n)) > 1 for n in node.all_input_nodes)

    def _opaque(self, node: fx.Node) -> None:
        """The operator reads its channels in ways unknown: every lane must be whole."""
        walk, lanes = self.walk, {}
        for S, reads in walk.whole_reads(node).items():
            arguments = fx.node.map_arg(walk.arguments(node, S), reads.__getitem__)
            lanes[S] = self._emit(node, *arguments)
            if walk.labelled(node):
                walk.relabel(node, S, lanes[S])
        if not lanes:
            raise walk.mismatch(node, "an operator needs all channels")
        walk.keep(node, lanes)

    def _coupled(self, node: fx.Node, operands: list[Value]) -> None:
        """The operator mixes channels: once for every source, on the lanes that the source has.

        What a merged channel gets is the mean over its sources, so statistics stay those of each
        source and a network with nothing merged is exact.
        """
        walk = self.walk
        present = {S for v in operands if v.labelled for S in v.lanes}
        alone = present == {walk.everyone}
        if self._vanishes(node):
            singles = {S: self._mixed(node, S)[0] for S in walk.singles}
            whole = walk.average(list(dict.fromkeys(singles.values())))
            walk.keep(node, {**singles, walk.everyone: whole})
            return
        lanes = {}
        for S in sorted_lanes(present):
            parts = [self._mixed_part(node, T, S) for T in ((S,) if alone else split(S))]
            lanes[S] = walk.average(list(dict.fromkeys(parts)))
            walk.verify(node, S, lanes[S])
        walk.keep(node, lanes)

    def _mixed(self, node: fx.Node, source: Membership) -> tuple[fx.Node, list[Membership]]:
        """The node on everything that a source has, and the lanes that this joins."""
        walk = self.walk
        joined: list[Membership] = []

        def load(n: fx.Node) -> fx.Node:
            value = walk.env[n.name]
            if not value.labelled:
                picked = walk.pick(value, source)
                assert picked is not None
                return picked
            gathered, lanes = walk.gather(value, source, self._channel_dim(n))
            joined[:] = lanes
            return gathered

        args, kwargs = fx.node.map_arg(walk.arguments(node, source), load)
        return self._emit(node, args, kwargs), joined

    def _mixed_part(self, node: fx.Node, source: Membership, lane: Membership) -> fx.Node:
        emitted, joined = self._mixed(node, source)
        dim = self._channel_dim(node)
        if any(self._channel_dim(n) != dim for n in node.all_input_nodes if self.walk.labelled(n)):
            raise self.walk.mismatch(node, "mixes channels and moves them")
        operand = next(n for n in node.all_input_nodes if self.walk.labelled(n))
        return self.walk.part(self.walk.env[operand.name], emitted, joined, lane, dim)

    def _channel_dim(self, node: fx.Node) -> int:
        dims = self._dims(node)
        if len(dims) != 1:
            raise self.walk.mismatch(node, "mixes channels along several dims")
        return dims.pop()

    def _dims(self, node: fx.Node) -> set[int]:
        return {d for c in self.walk.classes(node, 0) for d in range(c.ndim) if c.shape[d] > 1}

    # -- concatenation -----------------------------------------------------------------------

    def _concatenate(self, node: fx.Node) -> None:
        """Lane by lane; what can't be told apart so (channels along several dims) stays whole."""
        try:
            self._joined(node)
        except Mismatch:
            if not self._whole_lanes(node):
                raise
            self._opaque(node)

    def _whole_lanes(self, node: fx.Node) -> set[Membership]:
        """The lanes of a node's operands, where each has all channels; else none."""
        walk = self.walk
        groups = walk.operand_groups(node) | walk.result_groups(node)
        lanes = {S for v in walk.operands(node) if v.labelled for S in v.lanes}
        return lanes if all(walk.is_whole(groups, S) for S in lanes) else set()

    def _joined(self, node: fx.Node) -> None:
        """An operand without channels in a lane is left out of it."""
        walk = self.walk
        tensors = list(_first(node))
        rank = len(walk.programs[0].shapes[node.name])
        dim = int(node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)) % rank  # type: ignore[arg-type]
        if not any(c.shape[dim] > 1 for c in walk.classes(node, 0)):
            self._lane_wise(node, walk.operands(node))
            return
        pieces = self._pieces(node, tensors, dim)
        lanes = {}
        for S in sorted_lanes({S for piece in pieces for S in piece}):
            nodes = [piece[S][0] for piece in pieces if S in piece]
            slots = [piece[S][1] for piece in pieces if S in piece]
            emitted = walk.emit("call_function", torch.cat, (nodes, dim))
            walk.labeller.assign(walk.values[emitted], [])
            walk.label(walk.values[emitted], dim, np.concatenate(slots))
            walk.verify(node, S, emitted)
            lanes[S] = emitted
        walk.keep(node, lanes)

    def _pieces(
        self, node: fx.Node, tensors: list[fx.Node], dim: int
    ) -> list[dict[Membership, tuple[fx.Node, IntArray]]]:
        """Per operand its lanes, and the slots each holds along the joined dim."""
        walk = self.walk
        sizes = [[p.shapes[t.name][dim] for t in tensors] for p in walk.programs]
        places = [self._place(node, dim, s) for s in range(walk.sources)]
        stretches = [np.split(c, np.cumsum(own)[:-1]) for c, own in zip(places, sizes, strict=True)]
        pieces = []
        for operand, *own in zip(tensors, *stretches, strict=True):
            value = walk.env[operand.name]
            if value.labelled:
                pieces.append({S: (n, self._slots(node, n, dim)) for S, n in value.lanes.items()})
            elif walk.groups_of(own[:1]):
                pieces.append(self._labelled_piece(node, value, own))
            else:
                pieces.append(self._bare_piece(node, value, len(own[0])))
        return pieces

    def _slots(self, node: fx.Node, emitted: fx.Node, dim: int) -> IntArray:
        slots = self.walk.slots_along(emitted, dim)
        if slots is None or len(self.walk.labeller.of(self.walk.values[emitted])) > 1:
            raise self.walk.mismatch(node, "concatenates channels whose origin isn't known")
        return slots

    def _place(self, node: fx.Node, dim: int, source: int) -> IntArray:
        """The classes along a dim of a result."""
        classes = next(c for c in self.walk.classes(node, source) if c.shape[dim] > 1)
        return np.moveaxis(classes, dim, 0).reshape(classes.shape[dim], -1)[:, 0]

    def _labelled_piece(
        self, node: fx.Node, value: Value, own: Sequence[IntArray]
    ) -> dict[Membership, tuple[fx.Node, IntArray]]:
        """An operand without labels, with the slots that its place in the result stands for."""
        walk = self.walk
        piece: dict[Membership, tuple[fx.Node, IntArray]] = {}
        for group in walk.groups_of(own[:1]):
            for lane in walk.table.lanes[group]:
                source = members(lane.membership)[0]
                slots = walk.slots[source, lane.membership][own[source]]
                picked = walk.pick(value, lane.membership)
                if picked is None or (slots < 0).any():
                    raise walk.mismatch(node, "concatenates channels without labels")
                piece[lane.membership] = (picked, slots)
        return piece

    def _bare_piece(
        self, node: fx.Node, value: Value, size: int
    ) -> dict[Membership, tuple[fx.Node, IntArray]]:
        """An operand whose place in the result is in no plan: beside whole lanes, without slots."""
        walk, none = self.walk, np.full(size, NONE)
        lanes = self._whole_lanes(node)
        if not lanes:
            raise walk.mismatch(node, "concatenates channels without labels")
        picked = {S: walk.pick(value, S) for S in lanes}
        return {S: (n, none) for S, n in picked.items() if n is not None}


def _first(node: fx.Node) -> Any:
    """What is joined: several tensors, or one tuple of them that a node gives."""
    return node.args[0] if node.args else node.kwargs.get("tensors")


def _exact(value: Value, membership: Membership) -> bool:
    return membership in value.lanes


def _collapse(walk: Walk, lanes: Mapping[Membership, fx.Node]) -> dict[Membership, fx.Node]:
    """Plain values (sizes) that are equal in all lanes are computed once."""
    nodes = list(lanes.values())
    first = walk.values[nodes[0]]
    plain = not isinstance(first, (Tensor, tuple, list)) or isinstance(first, torch.Size)
    if plain and all(walk.values[n] == first for n in nodes):
        walk.equal.append(tuple(nodes))
        return dict.fromkeys((*lanes, *walk.whole_first), nodes[0])
    return dict(lanes)


def _output_names(result: Any, heads: str, names: list[str]) -> tuple[str, ...]:
    structures = result if heads == "separate" else (result,)
    found: list[str] = []
    for name, structure in zip(names, structures, strict=True):
        _walk_names(structure, name, found)
    return tuple(found)


def _walk_names(structure: Any, name: str, found: list[str]) -> None:
    if isinstance(structure, fx.Node):
        found.append(name)
    elif isinstance(structure, Mapping):
        for key, part in structure.items():
            _walk_names(part, f"{name}_{key}", found)
    elif isinstance(structure, (tuple, list)):
        for k, part in enumerate(structure):
            _walk_names(part, f"{name}_{k}", found)


def _has(root: torch.nn.Module, path: str) -> bool:
    try:
        root.get_submodule(path)
    except AttributeError:
        return False
    return True
