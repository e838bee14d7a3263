"""The number of examples where a model's code made a number of it: ``int(x.shape[0] / 4)``.

Two traces tell, of batches of different sizes: what grows with the batch in one place of the same
graph is that multiple of it.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate

Inputs = tuple[Tensor, ...]


def batch(inputs: Inputs) -> int | None:
    """The number of examples; None: some input has none, or another one."""
    sizes = {len(t) for t in inputs if t.dim() > 0}
    return sizes.pop() if len(sizes) == 1 and all(t.dim() > 1 for t in inputs) else None


def one_more(inputs: Inputs) -> Inputs:
    """The same examples, and the first one again."""
    return tuple(torch.cat([t, t[:1]]) for t in inputs)


def open_batch(module: fx.GraphModule, longer: fx.GraphModule, examples: int) -> bool:
    """Have the graph ask for the batch where the one of a ``longer`` batch has other numbers.

    In place; False: the graphs differ in more than that, and nothing was done.
    """
    nodes, others = list(module.graph.nodes), list(longer.graph.nodes)
    if [(n.op, n.target) for n in nodes] != [(n.op, n.target) for n in others]:
        return False
    places = {node: k for k, node in enumerate(nodes)} | {n: k for k, n in enumerate(others)}
    found = [_multiples(a, b, places, examples) for a, b in zip(nodes, others, strict=True)]
    changes = {n: own for n, own in zip(nodes, found, strict=True) if own is None or any(own)}
    if None in changes.values() or not changes:
        return False
    first = next(n for n in nodes if n.op == "placeholder")
    last = [n for n in nodes if n.op == "placeholder"][-1]
    with module.graph.inserting_after(last):
        size = module.graph.call_method("size", (first, 0))
    for node, multiples in changes.items():
        assert multiples is not None
        _ask(node, multiples, size)
    return True


def _leaves(node: fx.Node) -> list[Any]:
    found: list[Any] = []

    def take(leaf: Any) -> Any:
        found.append(leaf)
        return leaf

    map_aggregate((node.args, node.kwargs), take)
    return found


def _multiples(
    node: fx.Node, other: fx.Node, places: dict[fx.Node, int], examples: int
) -> list[int] | None:
    """For every argument, how many times the batch it is, 0 where it is the same; None: neither."""
    ours, theirs = _leaves(node), _leaves(other)
    if len(ours) != len(theirs):
        return None
    found = []
    for a, b in zip(ours, theirs, strict=True):
        one, two = (places.get(v) if isinstance(v, fx.Node) else v for v in (a, b))
        if isinstance(one, Tensor) or type(one) is not type(two):
            return None
        if one == two:
            found.append(0)
        elif type(a) is int and a % examples == 0 and b == a // examples * (examples + 1):
            found.append(a // examples)
        else:
            return None
    return found


def _ask(node: fx.Node, multiples: list[int], size: fx.Node) -> None:
    rest = iter(multiples)
    graph = node.graph

    def put(leaf: Any) -> Any:
        times = next(rest)
        if times < 2:
            return size if times else leaf
        with graph.inserting_before(node):
            return graph.call_function(operator.mul, (size, times))

    node.args, node.kwargs = map_aggregate((node.args, node.kwargs), put)
