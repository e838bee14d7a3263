"""Bring a program to the few forms that later passes know.

What depends on parameters alone (weight standardisation, reparametrisation) is computed once;
functional layers whose parameters are then constants become modules.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from passes.trace import trace
from pleas_fx.ir import Program
from pleas_fx.module_tree import attribute, execute


@dataclass(frozen=True, slots=True)
class Lower:
    """Options of the pass."""

    name: str = "lower"

    def run(self, program: Program) -> Program:
        return lower(program)


def lower(program: Program) -> Program:
    """An equal program without computed weights and without functional layers."""
    module = copy.deepcopy(program.module)
    with torch.no_grad():
        _fold(module)
        _reshape(module)
        for node in list(module.graph.nodes):
            _to_module(module, node, program.shapes)
    module.graph.eliminate_dead_code()
    module.recompile()
    module.delete_all_unused_submodules()
    _drop_unread(module)
    if _names(module) == _names(program.module):  # no layer came or went
        return replace(program, module=module)
    return trace(module, program.inputs)


def _names(module: fx.GraphModule) -> list[str]:
    return [node.name for node in module.graph.nodes]


def _reshape(module: fx.GraphModule) -> None:
    """``view`` as ``reshape``: in a graph without writes they differ in what they refuse only."""
    for node in module.graph.find_nodes(op="call_method", target="view"):
        if not node.kwargs and not isinstance(node.args[-1], torch.dtype):
            node.target = "reshape"


def _drop_unread(module: fx.GraphModule) -> None:
    """Root parameters that only folded nodes read."""
    read = {str(n.target) for n in module.graph.nodes if n.op == "get_attr"}
    for key in [k for k, _ in module.named_parameters(recurse=False)]:
        if key not in read:
            delattr(module, key)


def _fold(module: fx.GraphModule) -> None:
    """Replace what only parameters go into by its value."""
    values: dict[fx.Node, Any] = {}
    for node in list(module.graph.nodes):
        if node.op == "get_attr":
            values[node] = attribute(module, str(node.target))
        elif node.op in ("call_function", "call_method") and _known(node, values):
            values[node] = _compute(module, node, values)
    for node, value in values.items():
        outside = [user for user in node.users if user not in values]
        if node.op != "get_attr" and outside and isinstance(value, Tensor):
            _replace(module, node, value, outside)


def _known(node: fx.Node, values: Mapping[fx.Node, Any]) -> bool:
    inputs = node.all_input_nodes
    return bool(inputs) and all(n in values for n in inputs)


def _compute(module: nn.Module, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
    return execute(module, node.op, node.target, args, kwargs)


def _replace(module: fx.GraphModule, node: fx.Node, value: Tensor, users: list[fx.Node]) -> None:
    name = f"folded_{node.name}"
    module.register_parameter(name, nn.Parameter(value.detach().clone(), requires_grad=False))
    with module.graph.inserting_before(node):
        constant = module.graph.get_attr(name)
    for user in users:
        user.replace_input_with(node, constant)


Maker = Callable[[dict[str, Any]], nn.Module]

CONVOLUTIONS: dict[Any, tuple[type[nn.Module], bool]] = {
    F.conv1d: (nn.Conv1d, False),
    F.conv2d: (nn.Conv2d, False),
    F.conv3d: (nn.Conv3d, False),
    torch.conv1d: (nn.Conv1d, False),
    torch.conv2d: (nn.Conv2d, False),
    torch.conv3d: (nn.Conv3d, False),
    F.conv_transpose1d: (nn.ConvTranspose1d, True),
    F.conv_transpose2d: (nn.ConvTranspose2d, True),
    F.conv_transpose3d: (nn.ConvTranspose3d, True),
}

ARGUMENTS: dict[str, tuple[str, ...]] = {
    "conv": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "transposed": (
        "input",
        "weight",
        "bias",
        "stride",
        "padding",
        "output_padding",
        "groups",
        "dilation",
    ),
    "linear": ("input", "weight", "bias"),
    "layer_norm": ("input", "normalized_shape", "weight", "bias", "eps"),
    "group_norm": ("input", "num_groups", "weight", "bias", "eps"),
    "batch_norm": (
        "input",
        "running_mean",
        "running_var",
        "weight",
        "bias",
        "training",
        "momentum",
        "eps",
    ),
    "prelu": ("input", "weight"),
}


def _convolution(kind: type[Any], transposed: bool) -> Maker:
    def make(a: dict[str, Any]) -> nn.Module:
        weight, groups = a["weight"], int(a.get("groups") or 1)
        rows, columns = weight.shape[0], weight.shape[1] * groups
        inputs, outputs = (rows, columns) if transposed else (columns, rows)
        options = {k: a[k] for k in ("stride", "padding", "dilation", "output_padding") if k in a}
        layer: nn.Module = kind(
            inputs,
            outputs,
            tuple(weight.shape[2:]),
            groups=groups,
            bias=a.get("bias") is not None,
            **options,
        )
        return layer

    return make


def _linear(a: dict[str, Any]) -> nn.Module:
    outputs, inputs = a["weight"].shape
    return nn.Linear(inputs, outputs, bias=a.get("bias") is not None)


def _layer_norm(a: dict[str, Any]) -> nn.Module:
    affine = a.get("weight") is not None
    bias = a.get("bias") is not None
    return nn.LayerNorm(
        a["normalized_shape"], a.get("eps", 1e-5), elementwise_affine=affine, bias=bias
    )


def _group_norm(a: dict[str, Any]) -> nn.Module:
    return nn.GroupNorm(a["num_groups"], a["weight"].shape[0], a.get("eps", 1e-5))


def _batch_norm(a: dict[str, Any]) -> nn.Module:
    kinds = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
    affine = a.get("weight") is not None
    return kinds[a["rank"]](a["running_mean"].shape[0], a.get("eps", 1e-5), affine=affine)


def _prelu(a: dict[str, Any]) -> nn.Module:
    return nn.PReLU(a["weight"].numel())


MAKERS: dict[Any, tuple[str, Maker]] = {
    **{
        function: ("transposed" if transposed else "conv", _convolution(kind, transposed))
        for function, (kind, transposed) in CONVOLUTIONS.items()
    },
    F.linear: ("linear", _linear),
    F.layer_norm: ("layer_norm", _layer_norm),
    F.group_norm: ("group_norm", _group_norm),
    F.batch_norm: ("batch_norm", _batch_norm),
    F.prelu: ("prelu", _prelu),
}

STATE = ("weight", "bias", "running_mean", "running_var")


def _to_module(
    module: fx.GraphModule, node: fx.Node, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Replace a functional layer by a module, where all its parameters are constants."""
    if node.op != "call_function" or node.target not in MAKERS:
        return
    names, make = MAKERS[node.target]
    arguments: dict[str, Any] = dict(zip(ARGUMENTS[names], node.args, strict=False))
    arguments.update(node.kwargs)
    source = arguments.pop("input")
    if arguments.get("training") or not _load_state(module, arguments):
        return
    if any(isinstance(v, fx.Node) for v in arguments.values()) or arguments.get("weight") is None:
        return
    arguments["rank"] = len(shapes.get(source.name, (0, 0, 0, 0)))
    layer = make(arguments).eval().to(arguments["weight"])
    for name in STATE:
        value = arguments.get(name)
        if value is not None:
            getattr(layer, name).copy_(value.reshape(getattr(layer, name).shape))
    name = f"{node.name}_layer"
    module.add_submodule(name, layer)
    with module.graph.inserting_before(node):
        call = module.graph.call_module(name, (source,))
    node.replace_all_uses_with(call)
    module.graph.erase_node(node)


def _load_state(module: fx.GraphModule, arguments: dict[str, Any]) -> bool:
    """Put tensors in place of the nodes of parameters; False when one is computed from data."""
    for name in STATE:
        value = arguments.get(name)
        if isinstance(value, fx.Node):
            if value.op != "get_attr":
                return False
            arguments[name] = attribute(module, str(value.target)).detach()
    return True
