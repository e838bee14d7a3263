"""Operators that stand for several, or give more than is read, as those that say so."""

from __future__ import annotations

import operator
from dataclasses import fields, is_dataclass
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
    """In place: gated linear units as products, extremes along a dim without their indices,
    dataclasses as dictionaries.
    """
    _open_records(module.graph)
    for node in list(module.graph.nodes):
        with module.graph.inserting_before(node):
            found = _gated(module, node) or _extreme(node)
        for old, new in found or ():
            old.replace_all_uses_with(new)
            module.graph.erase_node(old)


def _open_records(graph: fx.Graph) -> None:
    """What builds a dataclass of tensors: who reads a field reads the tensor."""
    for node in reversed(list(graph.nodes)):
        kind = node.target
        if node.op == "call_function" and isinstance(kind, type) and is_dataclass(kind):
            _open_record(node, kind)


def _open_record(node: fx.Node, kind: type) -> None:
    names = [field.name for field in fields(kind) if field.init]
    content: dict[str, Any] = dict(zip(names, node.args, strict=False)) | node.kwargs
    for user in list(node.users):
        if user.target is getattr and user.args[1] in content:
            user.replace_all_uses_with(content[str(user.args[1])])
            node.graph.erase_node(user)
            continue
        user.args, user.kwargs = fx.node.map_arg(
            (user.args, user.kwargs), lambda n: content if n is node else n
        )
    node.graph.erase_node(node)


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
