"""Bring a graph's nodes into the order of another's: what runs first of two branches is no matter.

Nor is the order of what is added or multiplied.
"""

from __future__ import annotations

import operator
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace

from torch import fx, nn

from pleas_fx.ir import Program
from pleas_fx.module_tree import constants, leave_out

COMMUTING = (operator.add, operator.mul)  # as passes.respell writes them

Pairs = dict[fx.Node, fx.Node]  # of the first graph, and of the other


@dataclass(frozen=True, slots=True)
class Reorder:
    """Options of the pass."""

    name: str = "reorder"

    def run(self, first: Program, other: Program) -> Program:
        return reorder(first, other)


def reorder(first: Program, other: Program) -> Program:
    """The other's graph with its nodes where the first has theirs, as far as they correspond.

    Nodes correspond that the same way leads to from the outputs. Where one has nodes that the other
    lacks, it stays as it is: :func:`passes.compare.compare` says what differs.
    """
    pairs = _pairs(first, other)
    ours, theirs = first.module.graph.nodes, other.module.graph.nodes
    if not len(pairs) == len(ours) == len(theirs) == len(set(pairs.values())):
        return other
    turned = any(_turned(node, own, pairs) for node, own in pairs.items())
    if not turned and [pairs[node] for node in ours] == list(theirs):
        return other
    graph, made = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in ours:
        own = pairs[node]
        if not all(n in made for n in own.all_input_nodes):
            return other
        args = own.args[::-1] if _turned(node, own, pairs) else own.args
        args, kwargs = fx.node.map_arg((args, own.kwargs), made.__getitem__)
        made[own] = graph.create_node(own.op, own.target, args, kwargs, name=own.name)
        made[own].meta = own.meta.copy()
    module = fx.GraphModule(other.module, graph)
    leave_out(module, constants(other.module))  # torch.fx copies buffers as lasting ones
    return replace(other, module=module)


def _turned(node: fx.Node, own: fx.Node, pairs: Pairs) -> bool:
    """Whether the other has its operands the other way round."""
    return _commutes(own) and [pairs[n] for n in node.all_input_nodes] != own.all_input_nodes


def _commutes(node: fx.Node) -> bool:
    both = len(node.args) == 2 and all(isinstance(a, fx.Node) for a in node.args)
    return node.op == "call_function" and node.target in COMMUTING and both


def _pairs(first: Program, other: Program) -> Pairs:
    """Of the first, with those of the other, from the outputs and the inputs on."""
    numbers: dict[Hashable, int] = {}
    one, two = (_keys(program.module, numbers) for program in (first, other))
    ends = (
        [n for n in program.module.graph.nodes if n.op in ("placeholder", "output")]
        for program in (first, other)
    )
    found: Pairs = {}
    waiting = list(zip(*ends, strict=False))
    while waiting:
        a, b = waiting.pop()
        if a in found:
            continue
        found[a] = b
        before, behind = list(a.all_input_nodes), list(b.all_input_nodes)
        if _commutes(a) and _commutes(b) and one[before[0]] != two[behind[0]]:
            crossed = one[before[0]] == two[behind[-1]] or one[before[-1]] == two[behind[0]]
            behind = behind[::-1] if crossed else behind
        waiting += zip(before, behind, strict=False)
    return found


def _keys(module: fx.GraphModule, numbers: dict[Hashable, int]) -> Mapping[fx.Node, int]:
    """What every node computes, as a number: the same where all above it is, but for weights."""
    keys: dict[fx.Node, int] = {}
    for node in module.graph.nodes:
        above = [keys[n] for n in node.all_input_nodes]
        order = sorted(above) if _commutes(node) else above
        what = (node.op, _what(module, node), tuple(order))
        keys[node] = numbers.setdefault(what, len(numbers))
    return keys


def _what(module: nn.Module, node: fx.Node) -> Hashable:
    if node.op == "call_module":
        layer = module.get_submodule(str(node.target))
        return type(layer), tuple(tuple(p.shape) for p in layer.parameters())
    if node.op in ("placeholder", "get_attr", "output"):
        return ""
    literals = fx.node.map_arg((node.args, node.kwargs), lambda _: None)
    return str(node.target), repr(literals)
