"""Bring a program to the few forms that later passes know.

What depends on parameters alone (weight standardisation, reparametrisation, their sizes) is
computed once; functional layers whose parameters are then constants become modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from passes._attention import unfold_attention
from passes._functional import call_instead, functional_layer
from passes.trace import traced
from pleas_fx.ir import Program
from pleas_fx.module_tree import attribute, constants, execute, twin

LIKE = ("device", "dtype")


@dataclass(frozen=True, slots=True)
class Lower:
    """Options of the pass."""

    name: str = "lower"

    def run(self, program: Program) -> Program:
        return lower(program)


def lower(program: Program) -> Program:
    """An equal program without computed weights and without functional layers."""
    module, shapes = twin(program.module), dict(program.shapes)
    with torch.no_grad():
        unfold_attention(module, shapes)
        _fold(module)
        _reshape(module)
        _convert(module, shapes)
        for node in list(module.graph.nodes):
            layer = functional_layer(module, node, shapes)
            if layer is not None:
                call = call_instead(module, node, layer, f"{node.name}_layer")
                shapes[call.name] = shapes[node.name]
    module.graph.eliminate_dead_code()
    module.recompile()
    module.delete_all_unused_submodules()
    _drop_unread(module)
    if _names(module) == _names(program.module):  # no layer came or went
        return replace(program, module=module)
    layers = {str(node.target) for node in module.graph.find_nodes(op="call_module")}
    again = traced(module, program.inputs, leaves=layers)  # what wasn't entered stays so
    return replace(again, general=program.general)


def _names(module: fx.GraphModule) -> list[str]:
    return [node.name for node in module.graph.nodes]


def _reshape(module: fx.GraphModule) -> None:
    """``view`` as ``reshape``: in a graph without writes they differ in what they refuse only."""
    for node in module.graph.find_nodes(op="call_method", target="view"):
        if not node.kwargs and not isinstance(node.args[-1], torch.dtype):
            node.target = "reshape"


def _convert(module: fx.GraphModule, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """``x.to(other)`` reads where and of what type the other one is, none of its channels."""
    methods = (module.graph.find_nodes(op="call_method", target=t) for t in ("to", "type_as"))
    for node in [n for found in methods for n in found]:
        other = node.args[1] if len(node.args) == 2 and not node.kwargs else None
        if isinstance(other, fx.Node) and other.name in shapes:
            with module.graph.inserting_before(node):
                like = [module.graph.call_function(getattr, (other, a)) for a in LIKE]
            node.target, node.args = "to", (node.args[0], *like)


def _drop_unread(module: fx.GraphModule) -> None:
    """Root parameters that only folded nodes read."""
    read = {str(n.target) for n in module.graph.nodes if n.op == "get_attr"}
    for key in [k for k, _ in module.named_parameters(recurse=False)]:
        if key not in read:
            delattr(module, key)


def _fold(module: fx.GraphModule) -> None:
    """Replace what only parameters go into by its value: tensors, and what comes of sizes."""
    values: dict[fx.Node, Any] = {}
    sizes: set[fx.Node] = set()
    fixed: set[fx.Node] = set()
    made = constants(module)
    for node in list(module.graph.nodes):
        if node.op == "get_attr":
            values[node] = attribute(module, str(node.target))
            if str(node.target) in made:
                fixed.add(node)
        elif node.op in ("call_function", "call_method") and _known(node, values):
            value = _compute(module, node, values)
            if isinstance(value, Tensor) and value.is_complex():
                continue  # no parameter that anything could be fitted to
            values[node] = value
            if fixed.issuperset(node.all_input_nodes):
                fixed.add(node)
            if _asks_size(node) or sizes.issuperset(node.all_input_nodes):
                sizes.add(node)
    for node, value in values.items():
        outside = [user for user in node.users if user not in values]
        if node.op != "get_attr" and outside and isinstance(value, Tensor):
            _replace(module, node, value, outside, node in fixed)
        elif node in sizes:
            _write(node, value, outside)


def _asks_size(node: fx.Node) -> bool:
    """The same number in all sources; what a parameter holds isn't."""
    if node.op == "call_method":
        return node.target in ("size", "dim", "numel")
    return node.target is getattr and node.args[1] in ("shape", "ndim")


def _write(node: fx.Node, literal: Any, users: list[fx.Node]) -> None:
    for user in users:
        user.args, user.kwargs = fx.node.map_arg(
            (user.args, user.kwargs), lambda n: literal if n is node else n
        )


def _known(node: fx.Node, values: Mapping[fx.Node, Any]) -> bool:
    inputs = node.all_input_nodes
    return bool(inputs) and all(n in values for n in inputs)


def _compute(module: nn.Module, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
    return execute(module, node.op, node.target, args, kwargs)


def _replace(
    module: fx.GraphModule, node: fx.Node, value: Tensor, users: list[fx.Node], constant: bool
) -> None:
    name, tensor = f"folded_{node.name}", value.detach().clone()
    if constant:
        module.register_buffer(name, tensor, persistent=False)
    else:
        module.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
    with module.graph.inserting_before(node):
        instead = module.graph.get_attr(name)
    for user in users:
        user.replace_input_with(node, instead)
