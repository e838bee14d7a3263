"""Emit the merged network: every value becomes one lane a membership (DESIGN section 6).

A lane with membership S reads the lanes T with S∩T not empty; no other weights exist. The graph is
executed on one example while it is emitted, with slot labels in place of channel labels: the
order of every layer's input channels is read off, never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from passes._lanes import Mismatch, Walk
from passes._layers import Layers
from passes._nodes import Nodes
from passes._parameters import Site
from passes._sizes import read_where_computed
from pleas_fx.ir import GroupId, Lane, Layout, Membership, Program, Symmetry
from pleas_fx.lanes import SlotTable, slot_table
from pleas_fx.module_tree import discard

HEADS = ("separate", "shared", "joint")

__all__ = ["HEADS", "Mismatch", "Rewrite", "Rewritten", "Site", "rewrite"]


@dataclass(frozen=True, slots=True)
class Rewritten:
    """The merged network before fitting, and how it relates to its sources."""

    module: fx.GraphModule
    sites: tuple[Site, ...]
    emitted: Mapping[str, tuple[str, ...]]  # source node -> nodes of the merged graph
    lanes: Mapping[str, Mapping[Membership, str]]  # source node -> its lanes
    table: SlotTable
    layout: Layout  # of source 0
    output_names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rewrite:
    """Options of the pass."""

    name: str = "rewrite"
    heads: str = "separate"

    def run(
        self,
        programs: Sequence[Program],
        symmetries: Sequence[Symmetry],
        lanes: Mapping[GroupId, tuple[Lane, ...]],
    ) -> Rewritten:
        return rewrite(programs, symmetries, lanes, heads=self.heads)


def rewrite(
    programs: Sequence[Program],
    symmetries: Sequence[Symmetry],
    lanes: Mapping[GroupId, tuple[Lane, ...]],
    *,
    heads: str,
) -> Rewritten:
    """The merged graph with block averages as weights.

    Raises:
        Mismatch: the graph can't give these groups such widths; names the groups.
    """
    table = slot_table(lanes, [symmetry.layout for symmetry in symmetries])
    walk = Walk(programs, symmetries, table)
    layers, nodes = Layers(walk), Nodes(walk)
    try:
        with torch.no_grad():
            for node in programs[0].module.graph.nodes:
                _emit(walk, layers, nodes, node, heads)
    except Mismatch:
        discard(walk.root)
        raise
    return _finish(walk, layers, nodes)


UNFORESEEN = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)


def _emit(walk: Walk, layers: Layers, nodes: Nodes, node: fx.Node, heads: str) -> None:
    try:
        _emit_lanes(walk, layers, nodes, node, heads)
    except UNFORESEEN as error:  # what isn't understood stays whole
        raise walk.mismatch(node, f"{type(error).__name__}: {error}") from error


def _emit_lanes(walk: Walk, layers: Layers, nodes: Nodes, node: fx.Node, heads: str) -> None:
    walk.enter(node)
    if node.op == "output":
        nodes.output(node, heads)
    elif node.op == "placeholder":
        nodes.placeholder(node)
    elif node.op == "get_attr":
        layers.parameters.emit(node)
    elif node.op == "call_module" and layers.handles(node):
        layers.call(node)
    else:
        nodes.call(node)


def _finish(walk: Walk, layers: Layers, nodes: Nodes) -> Rewritten:
    read_where_computed(walk.graph, walk.equal)
    module = fx.GraphModule(walk.root, walk.graph)
    module.graph.eliminate_dead_code()
    alive = {n.name for n in module.graph.nodes}
    module.delete_all_unused_submodules()
    module.recompile()
    _drop_unused_tensors(module)
    module.eval()
    module.graph.lint()
    emitted = {
        name: tuple(n.name for n in made if n.name in alive) for name, made in walk.made.items()
    }
    lanes = {
        name: {S: n.name for S, n in value.lanes.items() if n.name in alive}
        for name, value in walk.env.items()
    }
    sites = (*layers.sites, *layers.parameters.sites)
    return Rewritten(
        module=module,
        sites=tuple(site for site in sites if site.emitted in alive),
        emitted=emitted,
        lanes=lanes,
        table=walk.table,
        layout=walk.layouts[0],
        output_names=nodes.output_names,
    )


def _drop_unused_tensors(module: fx.GraphModule) -> None:
    """Parameters at the root that no node reads (lanes that nothing used)."""
    used = {str(n.target) for n in module.graph.nodes if n.op == "get_attr"}
    called = {str(n.target) for n in module.graph.nodes if n.op == "call_module"}
    for key in list(module.state_dict(keep_vars=True)):
        owner, _, leaf = key.rpartition(".")
        if key in used or any(owner == c or owner.startswith(c + ".") for c in called):
            continue
        delattr(module.get_submodule(owner), leaf)
