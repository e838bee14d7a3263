"""Sizes that are the same in several lanes are read off one that is computed anyway."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import fx


def read_where_computed(graph: fx.Graph, equal: Sequence[Sequence[fx.Node]]) -> None:
    """Of each row of equal nodes, everything reads one whose operands something else needs, too.

    Until now the first one is read; a lane that nothing but its size is read of costs what it
    computes.
    """
    sizes = {node for row in equal for node in row}
    needed = _needed(graph, sizes) | sizes
    place = {node: number for number, node in enumerate(graph.nodes)}
    for row in equal:
        first, until = row[0], min((place[user] for user in row[0].users), default=0)
        for node in row:
            if place[node] < until and needed.issuperset(node.all_input_nodes):
                first.replace_all_uses_with(node)
                break


def _needed(graph: fx.Graph, beyond: Iterable[fx.Node]) -> set[fx.Node]:
    """What the output depends on, other than through some nodes."""
    found, waiting = set(beyond), list(graph.find_nodes(op="output"))
    before = set(found)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return found - before
