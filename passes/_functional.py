"""Functional layers as modules: which there are, and how a call becomes one."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from pleas_fx.module_tree import attach, attribute

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
    "product": ("input", "other"),
    "layer_norm": ("input", "normalized_shape", "weight", "bias", "eps"),
    "rms_norm": ("input", "normalized_shape", "weight", "eps"),
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


def _rms_norm(a: dict[str, Any]) -> nn.Module:
    affine = a.get("weight") is not None
    return nn.RMSNorm(a["normalized_shape"], a.get("eps"), elementwise_affine=affine)


def _group_norm(a: dict[str, Any]) -> nn.Module:
    affine = a.get("weight") is not None
    return nn.GroupNorm(a["num_groups"], a["shape"][1], a.get("eps", 1e-5), affine=affine)


def _batch_norm(a: dict[str, Any]) -> nn.Module:
    kinds = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
    affine = a.get("weight") is not None
    return kinds[len(a["shape"])](a["running_mean"].shape[0], a.get("eps", 1e-5), affine=affine)


def _prelu(a: dict[str, Any]) -> nn.Module:
    return nn.PReLU(a["weight"].numel())


MAKERS: dict[Any, tuple[str, Maker]] = {
    **{
        function: ("transposed" if transposed else "conv", _convolution(kind, transposed))
        for function, (kind, transposed) in CONVOLUTIONS.items()
    },
    F.linear: ("linear", _linear),
    F.layer_norm: ("layer_norm", _layer_norm),
    F.rms_norm: ("rms_norm", _rms_norm),
    F.group_norm: ("group_norm", _group_norm),
    F.batch_norm: ("batch_norm", _batch_norm),
    F.prelu: ("prelu", _prelu),
    **dict.fromkeys(
        (torch.matmul, torch.mm, operator.matmul, "matmul", "mm", "__matmul__"),
        ("product", _linear),
    ),
}

NORMS = (F.layer_norm, F.rms_norm, F.group_norm, F.batch_norm)  # may have no parameters
STATE = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True, slots=True)
class FunctionalLayer:
    """A call that is a layer with constant parameters."""

    source: fx.Node
    keys: Mapping[str, str]  # of its parameters and buffers, by their names in a module
    module: nn.Module


def functional_layer(
    module: fx.GraphModule, node: fx.Node, shapes: Mapping[str, tuple[int, ...]]
) -> FunctionalLayer | None:
    """What a call is as a layer; None where it isn't one, or a parameter is computed from data."""
    if not node.op.startswith("call_") or node.target not in MAKERS:
        return None
    names, make = MAKERS[node.target]
    arguments: dict[str, Any] = dict(zip(ARGUMENTS[names], node.args, strict=False))
    arguments.update(node.kwargs)
    source = arguments.pop("input")
    keys = _load_matrix(module, arguments) if names == "product" else _load_state(module, arguments)
    if arguments.get("training") or keys is None or source.name not in shapes:
        return None
    if any(isinstance(value, fx.Node) for value in arguments.values()):
        return None
    state = {name: arguments[name] for name in STATE if arguments.get(name) is not None}
    if "weight" not in state and (node.target not in NORMS or "bias" in state):
        return None
    arguments["shape"] = shapes[source.name]
    layer = make(arguments).eval()
    for name, value in state.items():
        layer = layer.to(value)
        getattr(layer, name).copy_(value.reshape(getattr(layer, name).shape))
    return FunctionalLayer(source, keys, layer)


def call_instead(
    module: fx.GraphModule, node: fx.Node, layer: FunctionalLayer, path: str
) -> fx.Node:
    """Put a layer at a path, and a call of it in place of a node."""
    attach(module, path, layer.module)
    with module.graph.inserting_before(node):
        call = module.graph.call_module(path, (layer.source,))
    node.replace_all_uses_with(call)
    module.graph.erase_node(node)
    return call


def _load_matrix(module: fx.GraphModule, arguments: dict[str, Any]) -> dict[str, str] | None:
    """The second factor as a linear layer's weight, which no parameter is as it lies."""
    other = arguments.pop("other", None)
    if not isinstance(other, fx.Node) or other.op != "get_attr":
        return None
    matrix = attribute(module, str(other.target)).detach()
    if matrix.dim() != 2 or not matrix.is_floating_point():
        return None
    arguments["weight"] = matrix.mT
    return {}


def _load_state(module: fx.GraphModule, arguments: dict[str, Any]) -> dict[str, str] | None:
    """Put tensors in place of parameters' nodes, and say which; None where one is computed."""
    keys = {}
    for name in STATE:
        value = arguments.get(name)
        if isinstance(value, fx.Node):
            if value.op != "get_attr":
                return None
            keys[name] = str(value.target)
            arguments[name] = attribute(module, str(value.target)).detach()
    return keys
