"""What becomes of the networks' outputs: one each, one shared, or all classes side by side."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence

import numpy as np
from torch import fx
from torch.utils._pytree import tree_leaves

from pleas_fx.errors import IncompatibleModelsError, OptionError
from pleas_fx.ir import GroupId, Lane, Matching, Program, Symmetry, everyone, only

Classes = Sequence[Sequence[Hashable]]


def output_groups(program: Program, symmetry: Symmetry) -> frozenset[GroupId]:
    """The groups of the network's outputs, and what is frozen together with them, or beside them.

    Beside: along another dim of one value (sides of a box and anchors, say), or in a parameter
    that the values are combined with (sizes of anchors).
    """
    output = next(n for n in program.module.graph.nodes if n.op == "output")
    found = {g for node in output.all_input_nodes for g in _groups(symmetry, node)}
    grown, beside = True, _side_by_side(symmetry)
    read = list(_parameters_read(program, symmetry))
    while grown:
        linked: set[int] = {g for b in (*symmetry.bundles, *beside) if b & found for g in b}
        linked |= {g for here, own in read if here & found for g in own}
        grown = not linked <= found
        found |= linked
    planned = {g.id for g in (*symmetry.groups, *symmetry.fixed)}
    return frozenset(GroupId(g) for g in found if g in planned)


def _groups(symmetry: Symmetry, node: fx.Node) -> set[int]:
    """Those of a node's value."""
    coordinates = symmetry.layout.values.get(node.name, ())
    return {int(g) for c in coordinates for g in np.unique(symmetry.layout.group[c[c >= 0]])}


def _parameters_read(
    program: Program, symmetry: Symmetry
) -> Iterator[tuple[set[int], frozenset[int]]]:
    """Groups of a node's value, and those of a parameter that it reads which can't move."""
    alone = (g for g in symmetry.groups if g.size == 1)
    still = {int(g.id) for g in (*symmetry.fixed, *alone)}
    for node in program.module.graph.nodes:
        for operand in node.all_input_nodes:
            if operand.op == "get_attr":
                yield _groups(symmetry, node), frozenset(_groups(symmetry, operand) & still)


def _side_by_side(symmetry: Symmetry) -> set[frozenset[GroupId]]:
    """Fixed groups along several dims of one value."""
    fixed = {g.id for g in symmetry.fixed}
    found = set()
    for coordinates in symmetry.layout.values.values():
        if len(coordinates) > 1:
            own = np.concatenate([c[c >= 0] for c in coordinates])
            groups = np.unique(symmetry.layout.group[own]).tolist()
            found.add(frozenset(GroupId(g) for g in groups) & fixed)
    return found


def head_nodes(program: Program, symmetry: Symmetry, outputs: frozenset[GroupId]) -> frozenset[str]:
    """The nodes of the source graph that carry output groups, or nothing but outputs."""
    names = {n.name for n in program.module.graph.nodes if _groups(symmetry, n) & outputs}
    output = next(n for n in program.module.graph.nodes if n.op == "output")
    names |= {n.name for n in tree_leaves(output.args) if isinstance(n, fx.Node)}
    return frozenset(names)


def given_lanes(
    programs: Sequence[Program],
    symmetries: Sequence[Symmetry],
    heads: str,
    classes: Classes | None,
) -> dict[GroupId, tuple[Lane, ...]]:
    """Lanes that aren't the planner's choice.

    The outputs, groups with more channels in one source than in another, and axes that no value
    carries.
    """
    outputs = output_groups(programs[0], symmetries[0])
    lanes: dict[GroupId, tuple[Lane, ...]] = {}
    counted = [{g.id: g.size for g in (*s.groups, *s.fixed)} for s in symmetries]
    for group in counted[0]:
        sizes = [own[group] for own in counted]
        if group in outputs:
            lanes[group] = _head_lanes(sizes, heads, classes)
        elif len(set(sizes)) > 1:
            lanes[group] = _head_lanes(sizes, "separate", None)
    carried = {
        int(g)
        for coordinates in symmetries[0].layout.values.values()
        for c in coordinates
        for g in np.unique(symmetries[0].layout.group[c[c >= 0]])
    }
    families = {g.blocks.family for g in symmetries[0].groups if g.blocks and g.id in carried}
    for fixed in (*symmetries[0].groups, *symmetries[0].fixed):
        if int(fixed.id) not in carried and not (fixed.blocks and fixed.blocks.family in families):
            channels = np.tile(np.arange(fixed.size)[:, None], (1, len(programs)))
            lanes[fixed.id] = (Lane(everyone(len(programs)), channels),)
    return lanes


def in_matched_order(
    given: Mapping[GroupId, tuple[Lane, ...]], symmetry: Symmetry, matching: Matching
) -> dict[GroupId, tuple[Lane, ...]]:
    """The same lanes; movable channels that no value carries are averaged with their matches."""
    lanes = dict(given)
    for group in symmetry.groups:
        own = lanes.get(group.id, ())
        if len(own) == 1 and bool((own[0].channels >= 0).all()):  # in every source
            partner = matching.partner[group.id]
            lanes[group.id] = (Lane(everyone(len(partner)), partner.T),)
    return lanes


def _head_lanes(sizes: Sequence[int], heads: str, classes: Classes | None) -> tuple[Lane, ...]:
    sources = len(sizes)
    if heads == "separate":
        return tuple(_own_lane(s, n, sources) for s, n in enumerate(sizes))
    if heads == "shared":
        if len(set(sizes)) > 1:
            raise IncompatibleModelsError(
                f'heads="shared" needs equal output sizes, the sources have {list(sizes)}'
            )
        channels = np.tile(np.arange(sizes[0])[:, None], (1, sources))
        return (Lane(everyone(sources), channels),)
    return (Lane(everyone(sources), _joint_channels(sizes, classes)),)


def _own_lane(source: int, size: int, sources: int) -> Lane:
    channels = np.full((size, sources), -1, np.int64)
    channels[:, source] = np.arange(size)
    return Lane(only(source), channels)


def _joint_channels(sizes: Sequence[int], classes: Classes | None) -> np.ndarray:
    """One row an output: side by side, or by name where sources share classes."""
    names = classes or [[(s, k) for k in range(n)] for s, n in enumerate(sizes)]
    if len(names) != len(sizes) or any(len(c) != n for c, n in zip(names, sizes, strict=True)):
        raise OptionError(f"classes must name every output of every source: {list(sizes)} outputs")
    order = list(dict.fromkeys(name for own in names for name in own))
    channels = np.full((len(order), len(sizes)), -1, np.int64)
    for s, own in enumerate(names):
        for k, name in enumerate(own):
            channels[order.index(name), s] = k
    return channels


def class_names(classes: Classes) -> list[Hashable]:
    """The names of a joint head's outputs, in order."""
    return list(dict.fromkeys(name for own in classes for name in own))
