"""The state of a rewrite: the emitted graph, its values with slot labels, its lanes."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from passes._blocks import Blocks, renamed
from pleas_fx.explicit import explicit_operators, steps_of
from pleas_fx.extract import Runner
from pleas_fx.ir import (
    Axis,
    GroupId,
    IntArray,
    Membership,
    Program,
    Symmetry,
    joint,
    letters,
    members,
    only,
)
from pleas_fx.labels import Labeller, compact, pattern
from pleas_fx.lanes import SlotTable
from pleas_fx.module_tree import execute
from pleas_fx.rules import RULES
from pleas_fx.shortage import shortage


class Mismatch(Exception):
    """The graph can't carry such widths: these groups must stay whole."""

    def __init__(self, groups: Iterable[GroupId], node: str, why: str) -> None:
        super().__init__(f"{node}: {why}")
        self.groups = frozenset(groups)
        self.node = node
        self.why = why


@dataclass(frozen=True, slots=True)
class Value:
    """A value of the source graph: one emitted node a membership."""

    lanes: Mapping[Membership, fx.Node]
    labelled: bool
    groups: frozenset[GroupId] = field(default_factory=frozenset)


class Walk:
    """Emits nodes, runs each on the example, and keeps the slot labels of its result."""

    def __init__(
        self, programs: Sequence[Program], symmetries: Sequence[Symmetry], table: SlotTable
    ) -> None:
        self.programs, self.symmetries, self.table = programs, symmetries, table
        self.layouts = [symmetry.layout for symmetry in symmetries]
        self.sources = len(programs)
        self.everyone = joint(table.present)
        self.singles = tuple(only(s) for s in table.present)
        self.whole_first = tuple(dict.fromkeys((self.everyone, *self.singles)))
        self._fixed = frozenset(group.id for group in symmetries[0].fixed)
        self.slots = {
            (s, S): table.slot_of(s, S, len(self.layouts[s].group))
            for s in range(self.sources)
            for S in {Membership(int(m)) for m in table.membership}
        }
        self.blocks = Blocks(table, (*symmetries[0].groups, *symmetries[0].fixed))
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.labeller = Labeller(RULES)
        self.labeller.count = table.size
        self.env: dict[str, Value] = {}
        self.inputs = 0
        self.values: dict[fx.Node, Any] = {}
        self.whole: set[fx.Node] = set()  # tuples whose parts are in the sources' order
        self.made: dict[str, list[fx.Node]] = {}
        self.origin: dict[fx.Node, str] = {}  # the source node that an emitted one is for
        self.equal: list[tuple[fx.Node, ...]] = []  # sizes of lanes; the first one is read
        self._memo: dict[Any, fx.Node] = {}
        self._node: fx.Node | None = None

    # -- the source graph --------------------------------------------------------------------

    def arguments(self, node: fx.Node, membership: Membership) -> Any:
        """Those of a call, as the first member has them: sizes differ where outputs do."""
        return self._arguments[members(membership)[0]][node]

    @cached_property
    def _arguments(self) -> list[dict[fx.Node, Any]]:
        found = []
        for program in self.programs:
            nodes = zip(
                program.module.graph.nodes, self.programs[0].module.graph.nodes, strict=True
            )
            twin = dict(nodes)
            own = {twin[n]: fx.node.map_arg((n.args, n.kwargs), twin.__getitem__) for n in twin}
            found.append(own)
        return found

    def alike(self, node: fx.Node) -> bool:
        """Whether all sources have the same arguments; as text, since NaN isn't equal to itself."""
        return len({repr(own[node]) for own in self._arguments}) == 1

    def number(self, value: Any, source: int = 0) -> Any:
        """What a source has in the place of a node that is a number: channels are counted so."""
        if not isinstance(value, fx.Node):
            return value
        return self._numbers[source].get(self.origin.get(value, ""), value)

    def value(self, value: Any) -> Any:
        """What a node is on the example, in its lane."""
        return self.values[value] if isinstance(value, fx.Node) else value

    @cached_property
    def _numbers(self) -> list[dict[str, int]]:
        found: list[dict[str, int]] = []
        for program in self.programs:
            names = map(str, self.programs[0].module.graph.nodes)
            name, own = dict(zip(program.module.graph.nodes, names, strict=True)), dict[str, int]()

            def see(node: fx.Node, value: Any, name: Any = name, own: Any = own) -> None:
                if isinstance(value, int):
                    own[name[node]] = value

            Runner(program.module, see).run(*program.inputs)
            found.append(own)
        return found

    def enter(self, node: fx.Node) -> None:
        """Begin with a node of the source graph."""
        self._node = node
        self.labeller.node = node.name
        self.made[node.name] = []

    def classes(self, node: fx.Node, source: int) -> tuple[IntArray, ...]:
        """A source value's coordinates, as class ids."""
        return self.layouts[source].values.get(node.name, ())

    def axis_classes(self, axis: Axis) -> list[IntArray] | None:
        """Every source's class ids on a parameter's axis; None where they are none, or all one."""
        found = [layout.axes.get(axis) for layout in self.layouts]
        known = [f for f in found if f is not None and (f != f.flat[0]).any()]
        return known if len(known) == len(found) else None

    def groups_of(self, classes: Iterable[IntArray], source: int = 0) -> frozenset[GroupId]:
        """The planned groups among a source's class ids."""
        found: set[int] = set()
        for c in classes:
            found |= set(np.unique(self.layouts[source].group[c[c >= 0]]).tolist())
        return frozenset(GroupId(g) for g in found if GroupId(g) in self.table.lanes)

    def labelled(self, node: fx.Node) -> bool:
        return bool(self.classes(node, 0))

    def operands(self, node: fx.Node) -> list[Value]:
        return [self.env[n.name] for n in node.all_input_nodes]

    def operand_groups(self, node: fx.Node) -> frozenset[GroupId]:
        return frozenset().union(*(v.groups for v in self.operands(node)))

    def result_groups(self, node: fx.Node) -> frozenset[GroupId]:
        """The planned groups of a value; of a tuple, those of its parts."""
        if node.name in self.programs[0].shapes:
            return self.groups_of(self.classes(node, 0))
        parts = [n for n in node.users if n.target is operator.getitem]
        return frozenset().union(*(self.result_groups(n) for n in parts))

    def mismatch(self, node: fx.Node, why: str) -> Mismatch:
        """A refusal that names every group the node touches."""
        groups = self.operand_groups(node) | self.result_groups(node)
        return Mismatch(groups, node.name, why)

    def is_whole(self, groups: Iterable[GroupId], membership: Membership) -> bool:
        """Whether every group keeps all its channels in this lane."""
        return all(
            any(
                lane.membership == membership and self._complete(g, membership, len(lane))
                for lane in self.table.lanes[g]
            )
            for g in groups
        )

    def _complete(self, group: GroupId, membership: Membership, slots: int) -> bool:
        sizes = [int((self.layouts[s].group == group).sum()) for s in members(membership)]
        return slots >= max(sizes)

    def whole_reads(self, node: fx.Node) -> dict[Membership, dict[fx.Node, fx.Node]]:
        """Lanes of an operator that needs all channels, and what each reads of every operand.

        Where none has all of its own, a source's reads merged ones that lie as they do there.
        """
        wanted = [S for S in self.whole_first if self.is_whole(self.result_groups(node), S)]
        for others in ((), self.whole_first):
            served = {S: (S, *(T for T in others if T & S == S)) for S in wanted}
            reads = {S: self._whole_read(node, lanes) for S, lanes in served.items()}
            found = {S: read for S, read in reads.items() if read is not None}
            if found:
                return found
        return {}

    def _whole_read(
        self, node: fx.Node, lanes: tuple[Membership, ...]
    ) -> dict[fx.Node, fx.Node] | None:
        found: dict[fx.Node, fx.Node] = {}
        for operand in node.all_input_nodes:
            value = self.env[operand.name]
            able = lanes if value.groups <= self._fixed else lanes[:1]
            picked = (self.pick(value, T) for T in able if self.is_whole(value.groups, T))
            read = next((p for p in picked if p is not None), None)
            if read is None:
                return None
            found[operand] = read
        return found

    # -- the merged graph --------------------------------------------------------------------

    def emit(
        self,
        op: str,
        target: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        substitutes: Mapping[fx.Node, Any] | None = None,
        name: str | None = None,
    ) -> fx.Node:
        """Add a node and run it on the example; an equal node is reused.

        ``substitutes`` stand in for values during the run, to carry other labels.
        """
        kwargs = dict(kwargs or {})
        key = (op, str(target), repr(args), repr(kwargs))
        if key in self._memo and op != "placeholder":
            return self._memo[key]
        value = self._run(op, target, args, kwargs, substitutes or {})
        node = self.graph.create_node(op, target, args, kwargs, name=name)
        self._memo[key] = node
        self.values[node] = value
        assert self._node is not None
        self.made[self._node.name].append(node)
        self.origin[node] = self._node.name
        return node

    def _run(
        self,
        op: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        substitutes: Mapping[fx.Node, Any],
    ) -> Any:
        def load(n: fx.Node) -> Any:
            return substitutes[n] if n in substitutes else self.values[n]

        real_args, real_kwargs = fx.node.map_arg((args, kwargs), load)
        before = len(self.labeller.ties)
        assert self._node is not None
        layers = self.root.get_submodule(target).modules() if op == "call_module" else ()
        try:
            with explicit_operators(), steps_of(*layers) as self.labeller.recurrent, self.labeller:
                value = execute(self.root, op, target, real_args, real_kwargs)
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            if shortage(error):
                raise
            raise self.mismatch(self._node, str(error).splitlines()[0]) from error
        self._name_blocks(value)
        del self.labeller.sites[:], self.labeller.pins[:], self.labeller.nests[:]
        if len(self.labeller.ties) > before and self._clash(before):
            raise self.mismatch(self._node, "channels of different slots would be combined")
        return value

    def _name_blocks(self, value: Any) -> None:
        """A reduction over blocks leaves labels of blocks; the plan has slots for them."""
        assert self._node is not None
        here = self.groups_of(self.classes(self._node, 0))
        names = self.blocks.names(self.labeller.nests, here)
        if names and isinstance(value, Tensor):
            self.labeller.assign(value, [renamed(c, names) for c in self.labeller.of(value)])

    def _clash(self, before: int) -> bool:
        ties = self.labeller.ties[before:]
        return any(bool((t < self.table.size).all(0).any()) for t in ties)

    def keep(self, node: fx.Node, lanes: Mapping[Membership, fx.Node]) -> None:
        """Set the lanes of a source node's value; lanes without any channel don't exist."""
        empty = 0 in self.programs[0].shapes.get(node.name, ())  # in the sources already
        kept = {
            S: n
            for S, n in lanes.items()
            if empty or not (isinstance(self.values[n], Tensor) and self.values[n].numel() == 0)
        }
        groups = self.groups_of(self.classes(node, 0))
        is_tensor = all(isinstance(self.values[n], Tensor) for n in kept.values())
        labelled = self.labelled(node)
        if not is_tensor:
            groups = self.operand_groups(node)
            labelled = any(v.labelled for v in self.operands(node)) and not self._same(kept)
        self.env[node.name] = Value(kept, labelled, groups)

    def _same(self, lanes: Mapping[Membership, fx.Node]) -> bool:
        """A number, or a size that is the same node in all lanes: nobody's in particular."""
        nodes = set(lanes.values())
        value = self.values[next(iter(nodes))]
        plain = not isinstance(value, (Tensor, tuple, list))
        return plain or (isinstance(value, torch.Size) and len(nodes) == 1)

    def verify(self, node: fx.Node, membership: Membership, emitted: fx.Node) -> None:
        """The lane holds exactly the channels of its membership, as often as the source does.

        Raises:
            Mismatch: it doesn't.
        """
        value = self.values[emitted]
        if not isinstance(value, Tensor):
            return
        found = [compact(c).reshape(-1).numpy() for c in self.labeller.of(value)]
        ids = np.concatenate(found) if found else np.zeros(0, np.int64)
        ids = ids[(ids >= 0) & (ids < self.table.size)]
        if (self.table.membership[ids] != membership).any():
            raise self.mismatch(node, "a lane holds channels of another one")
        planned = self.groups_of(self.classes(node, 0))
        for s in members(membership):
            own = ids[self.table.classes[ids, s] >= 0]
            expected = self._expected(node, s, membership)
            if not np.array_equal(np.sort(own), expected):
                raise self.mismatch(node, "channels are missing, extra or out of their places")
            if planned and not len(expected):
                raise self.mismatch(
                    node, "the result's channels aren't in the lane of its operands"
                )

    def verify_or_follow(self, node: fx.Node, membership: Membership, emitted: fx.Node) -> None:
        """As :meth:`verify`; where labels say too little, a lane may follow its source's layout.

        Operands that hold exactly what the source's do, entry by entry, make a result that does.

        Raises:
            Mismatch: neither holds.
        """
        try:
            self.verify(node, membership, emitted)
        except Mismatch:
            operands = [n for n in node.all_input_nodes if self.env[n.name].labelled]
            if not all(self._follows(n, membership) for n in operands):
                raise
            value = self.values[emitted]
            layout = self._source_slots(node, membership)
            if layout is None or any(c.dim() != value.dim() for c in layout):
                raise
            self.labeller.assign(value, [c.expand(value.shape) for c in layout])

    def _follows(self, node: fx.Node, membership: Membership) -> bool:
        """Whether a lane has the labels of its source, all of them, at the same entries."""
        lane = self.env[node.name].lanes.get(membership)
        layout = self._source_slots(node, membership)
        if lane is None or layout is None or not isinstance(self.values[lane], Tensor):
            return False
        found = [compact(c) for c in self.labeller.of(self.values[lane])]
        return len(found) == len(layout) and all(
            any(torch.equal(c, f) for f in found) for c in layout
        )

    def _source_slots(self, node: fx.Node, membership: Membership) -> list[Tensor] | None:
        """The first member's coordinates as slots of this lane; None where one is in no slot."""
        source = members(membership)[0]
        lookup = self.slots.get((source, membership))
        classes = self.classes(node, source)
        if lookup is None or any((lookup[c] < 0).any() for c in classes):
            return None
        return [compact(torch.from_numpy(lookup[c])) for c in classes]

    def _expected(self, node: fx.Node, source: int, membership: Membership) -> IntArray:
        lookup = self.slots.get((source, membership))
        if lookup is None:
            return np.zeros(0, np.int64)
        flat = [c[c >= 0].reshape(-1) for c in self.classes(node, source)]
        slots = lookup[np.concatenate(flat)] if flat else np.zeros(0, np.int64)
        return np.sort(slots[slots >= 0])

    # -- lanes -------------------------------------------------------------------------------

    def pick(self, value: Value, membership: Membership) -> fx.Node | None:
        """The node that a lane reads of an operand; None where the operand has no such lane."""
        exact = value.lanes.get(membership)
        if exact is not None:
            return exact
        nodes = list(value.lanes.values())
        if nodes and not isinstance(self.values[nodes[0]], Tensor):
            return self._plain_lane(nodes)
        if value.labelled:
            return None
        around = [S for S in value.lanes if S & membership == membership]
        if around:
            return value.lanes[min(around, key=lambda S: len(members(S)))]
        inside = [n for S, n in value.lanes.items() if S & membership == S]
        return self.average(list(dict.fromkeys(inside or nodes)))

    def _plain_lane(self, nodes: list[fx.Node]) -> fx.Node | None:
        first = self.values[nodes[0]]
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(first)):
            return nodes[0] if len(set(nodes)) == 1 else None
        return nodes[0] if all(self.values[n] == first for n in nodes) else None

    def average(self, nodes: list[fx.Node]) -> fx.Node:
        """The mean of several nodes of one shape."""
        total = nodes[0]
        for node in nodes[1:]:
            total = self.emit("call_function", torch.add, (total, node))
        if len(nodes) == 1:
            return total
        return self.emit("call_function", torch.div, (total, len(nodes)))

    def gather(
        self, value: Value, membership: Membership, dim: int
    ) -> tuple[fx.Node, list[Membership]]:
        """All lanes that a membership may read, joined along ``dim``, and which they are."""
        readable = [S for S in sorted_lanes(value.lanes) if S & membership]
        nodes = [value.lanes[S] for S in readable]
        if len(nodes) == 1:
            return nodes[0], readable
        return self.emit("call_function", torch.cat, (nodes, dim)), readable

    def part(
        self,
        operand: Value,
        joined: fx.Node,
        lanes: list[Membership],
        lane: Membership,
        dim: int,
    ) -> fx.Node:
        """One lane's share of a result that was computed on several joined lanes."""
        sizes = [self.values[operand.lanes[S]].shape[dim] for S in lanes]
        at = lanes.index(lane)
        if len(lanes) == 1:
            return joined
        args = (joined, dim, sum(sizes[:at]), sizes[at])
        return self.emit("call_function", torch.narrow, args)

    def slots_of_axes(self, outputs: Sequence[IntArray], membership: Membership) -> IntArray:
        """The lane's slots in the order of the first member's axis: its structure survives."""
        found = []
        for s in members(membership):
            slots = self.slots[s, membership][outputs[s]]
            found.append(slots[slots >= 0])
        rest = [np.setdiff1d(more, found[0]) for more in found[1:]]
        return np.concatenate([found[0], *rest])

    def slots_along(self, emitted: fx.Node, dim: int) -> IntArray | None:
        """The slot ids along a dim of an emitted value, None when it has no labels there."""
        value = self.values[emitted]
        for labels in self.labeller.of(value):
            if dim % value.dim() in pattern(labels):
                first = compact(labels)
                for d in range(first.dim()):
                    if d != dim % value.dim():
                        first = first.narrow(d, 0, 1)
                return first.reshape(-1).numpy().copy()
        return None

    def label(self, tensor: Tensor, dim: int, slots: IntArray) -> None:
        """Give one dim of a tensor slot labels, keeping those it has on other dims."""
        shape = [1] * tensor.dim()
        shape[dim] = -1
        labels = torch.from_numpy(np.asarray(slots)).view(shape).expand(tensor.shape)
        self.labeller.assign(tensor, [*self.labeller.of(tensor), labels])

    def relabel(self, node: fx.Node, membership: Membership, emitted: fx.Node) -> None:
        """Give a whole lane the slots of the source value it stands for."""
        source = members(membership)[0]
        lookup = self.slots.get((source, membership))
        value = self.values[emitted]
        if isinstance(value, (tuple, list)):
            self.whole.add(emitted)
        if lookup is None or not isinstance(value, Tensor):
            return
        own = [c for c in self.classes(node, source) if self.groups_of([c], source)]
        coordinates = [lookup[c] for c in own]
        labels = [torch.from_numpy(c).expand(value.shape) for c in coordinates]
        self.labeller.assign(value, labels)

    def lane_name(self, name: str, membership: Membership, alone: bool) -> str:
        """A module's name in the merged network: the source's own when it has one lane only."""
        return name if alone else f"{name}_{letters(membership)}"


def split(membership: Membership) -> list[Membership]:
    """The single-source memberships inside one."""
    return [only(s) for s in members(membership)]


def sorted_lanes(lanes: Iterable[Membership]) -> list[Membership]:
    """Most shared first, then by source."""
    return sorted(lanes, key=lambda S: (-len(members(S)), S))
