"""Operators that stand for several, or give more than is read, as those that say so."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

EXTREMES: dict[Any, Any] = {
    torch.max: torch.amax,
    torch.min: torch.amin,
    "max": torch.amax,
    "min": torch.amin,
}


def plainer(module: fx.GraphModule) -> None:
    """In place: gated linear units as products, extremes along a dim without their indices."""
    for node in list(module.graph.nodes):
        with module.graph.inserting_before(node):
            found = _gated(module, node) or _extreme(node)
        for old, new in found or ():
            old.replace_all_uses_with(new)
            module.graph.erase_node(old)


Replacements = list[tuple[fx.Node, fx.Node]]  # in the order in which they can be erased


def _gated(module: fx.GraphModule, node: fx.Node) -> Replacements:
    """A half of the channels times the sigmoid of the other (Dauphin et al. 2017)."""
    arguments = dict(zip(("input", "dim"), node.args, strict=False)) | node.kwargs
    if node.op == "call_module":
        layer = module.get_submodule(str(node.target))
        if type(layer) is not nn.GLU:
            return []
        arguments["dim"] = layer.dim
    elif node.op != "call_function" or node.target not in (F.glu, torch._C._nn.glu):
        return []
    graph = node.graph
    halves = graph.call_method("chunk", (arguments["input"], 2, arguments.get("dim", -1)))
    one, other = (graph.call_function(operator.getitem, (halves, k)) for k in (0, 1))
    gate = graph.call_function(torch.sigmoid, (other,))
    return [(node, graph.call_function(torch.mul, (one, gate)))]


def _extreme(node: fx.Node) -> Replacements:
    """Where only the values are read: which channel one is from is nobody's business then."""
    if not node.op.startswith("call_") or node.target not in EXTREMES:
        return []
    arguments = dict(zip(("input", "dim", "keepdim"), node.args, strict=False)) | node.kwargs
    parts = list(node.users)
    if not isinstance(arguments.get("dim"), int) or not all(map(_takes_values, parts)):
        return []
    given = (arguments["input"], arguments["dim"], arguments.get("keepdim", False))
    values = node.graph.call_function(EXTREMES[node.target], given)
    return [(part, values) for part in parts]


def _takes_values(part: fx.Node) -> bool:
    return (part.target, part.args[1:]) in ((operator.getitem, (0,)), (getattr, ("values",)))
