"""Which nodes are drawn, and which of them as one box."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass

from torch import fx

from pleas_fx.inspector.operators import operator_name, parameter_keys
from pleas_fx.ir import Program


@dataclass(frozen=True, slots=True)
class Bundle:
    """Nodes that become one box: a head and what only follows it."""

    nodes: tuple[fx.Node, ...]

    @property
    def head(self) -> fx.Node:
        return self.nodes[0]

    @property
    def last(self) -> fx.Node:
        return self.nodes[-1]


def inputs_of(node: fx.Node, drawn: set[fx.Node]) -> tuple[fx.Node, ...]:
    """The drawn nodes that a node reads."""
    return tuple(n for n in node.all_input_nodes if n in drawn)


def drawn_nodes(program: Program) -> tuple[fx.Node, ...]:
    """Nodes through which tensors flow; parameters belong to their readers, sizes to nobody."""
    found: list[fx.Node] = []
    for node in program.module.graph.nodes:
        tensor = node.name in program.shapes or _hands_out_tensors(node, program)
        if node.op == "output" or (tensor and node.op != "get_attr"):
            found.append(node)
    return tuple(found)


def _hands_out_tensors(node: fx.Node, program: Program) -> bool:
    """Whether this is a split, or a layer with several results."""
    return any(u.target is operator.getitem and u.name in program.shapes for u in node.users)


def bundles(program: Program) -> tuple[Bundle, ...]:
    """The boxes, in order of execution."""
    nodes = drawn_nodes(program)
    drawn = set(nodes)
    found: list[list[fx.Node]] = []
    home: dict[fx.Node, int] = {}
    for node in nodes:
        inputs = inputs_of(node, drawn)
        if len(inputs) == 1 and inputs[0] in home and _follows(program, node, inputs[0], drawn):
            bundle = found[home[inputs[0]]]
            if _accepts(program, bundle, node):
                bundle.append(node)
                home[node] = home[inputs[0]]
                continue
        home[node] = len(found)
        found.append([node])
    return tuple(Bundle(tuple(bundle)) for bundle in found)


def _follows(program: Program, node: fx.Node, before: fx.Node, drawn: set[fx.Node]) -> bool:
    """Whether ``node`` is the only reader of ``before`` and no end of the network."""
    readers = [user for user in before.users if user in drawn]
    ends = {"placeholder", "output"}
    return len(readers) == 1 and not {node.op, before.op} & ends


def _accepts(program: Program, bundle: Iterable[fx.Node], node: fx.Node) -> bool:
    """Whether ``node`` only goes on with what the bundle computes."""
    nodes = tuple(bundle)
    weights = has_weights(program, nodes)
    own = has_weights(program, (node,))
    if operator_name(node) == "getitem":
        return node.args[0] is nodes[-1]
    if own and not weights:
        return False
    if not own and not weights:
        return not _joins(nodes[0]) or _keeps_shape(program, nodes[-1], node)
    return _keeps_shape(program, nodes[-1], node) and not _mixes(program, node)


def _keeps_shape(program: Program, before: fx.Node, node: fx.Node) -> bool:
    return program.shapes.get(before.name) == program.shapes.get(node.name)


def _joins(node: fx.Node) -> bool:
    return sum(n.op != "get_attr" for n in node.all_input_nodes) > 1


def _mixes(program: Program, node: fx.Node) -> bool:
    """Whether a node's parameters are more than one number a channel."""
    state = program.module.state_dict(keep_vars=True)
    keys = parameter_keys(node, program)
    return any(sum(n > 1 for n in state[key].shape) > 1 for key in keys if key in state)


def has_weights(program: Program, nodes: Iterable[fx.Node]) -> bool:
    """Whether any of the nodes reads a parameter."""
    return any(parameter_keys(node, program) for node in nodes)
