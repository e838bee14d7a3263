"""Groups and frozen axes as they are listed: on the page, in the terminal, as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from torch import fx

from pleas_fx.inspector.operators import operator_name
from pleas_fx.inspector.view import FrozenView, GroupView, LayerUse
from pleas_fx.ir import Axis, Group, Program, Symmetry

STRONG, SOFT = 8, 12  # colours for residual streams, and for the groups between them


def layer_of(key: str) -> str:
    """The module that a parameter belongs to; the parameter itself at the root."""
    return key.rpartition(".")[0] or key


def group_views(program: Program, symmetry: Symmetry) -> tuple[GroupView, ...]:
    """Every group, residual streams and the others each with their own run of colours."""
    adds = joined(program, symmetry)
    given = Counter[bool]()
    views = []
    for group in symmetry.groups:
        count = adds[int(group.id)]
        trunk = count > 0
        colour = given[trunk] % STRONG if trunk else STRONG + given[trunk] % SOFT
        given[trunk] += 1
        views.append(_group_view(group, count, colour))
    return tuple(views)


def _group_view(group: Group, adds: int, colour: int) -> GroupView:
    return GroupView(
        key=str(int(group.id)),
        size=group.size,
        blocks=group.blocks,
        axes=len(group.axes),
        layers=layer_uses(group.axes),
        adds=adds,
        colour=colour,
        trunk=adds > 0,
    )


def layer_uses(axes: Sequence[Axis]) -> tuple[LayerUse, ...]:
    """Axes by layer, in order of first appearance."""
    found: dict[str, list[str]] = {}
    for key, dim in axes:
        layer = layer_of(key)
        leaf = key.removeprefix(f"{layer}.") if layer != key else key
        found.setdefault(layer, []).append(f"{leaf}.{dim}")
    return tuple(LayerUse(layer, tuple(names)) for layer, names in found.items())


def joined(program: Program, symmetry: Symmetry) -> Counter[int]:
    """Per group, the additions whose operands are activations that both carry it."""
    found = Counter[int]()
    for node in program.module.graph.nodes:
        inputs = [n for n in node.all_input_nodes if n.name in program.shapes]
        inputs = [n for n in inputs if n.op != "get_attr"]
        if not _adds(node) or len(inputs) < 2:
            continue
        found.update(set.intersection(*(carried(symmetry, n.name) for n in inputs)))
    return found


def carried(symmetry: Symmetry, node: str) -> set[int]:
    """The groups whose channels a value carries."""
    layout = symmetry.layout
    found: set[int] = set()
    for classes in layout.values.get(node, ()):
        found.update(np.unique(layout.group[classes[classes >= 0]]).tolist())
    return found - {-1}


def _adds(node: fx.Node) -> bool:
    return node.op in ("call_function", "call_method") and operator_name(node) in ("add", "iadd")


def frozen_views(symmetry: Symmetry) -> tuple[FrozenView, ...]:
    """Frozen axes by node and reason."""
    found: dict[tuple[str, str], list[Axis]] = {}
    for frozen in symmetry.frozen:
        found.setdefault((frozen.node, frozen.reason), []).append(frozen.axis)
    return tuple(
        FrozenView(f"f{k}", node, reason, tuple(axes))
        for k, ((node, reason), axes) in enumerate(found.items())
    )
