"""Graph nodes in words: what an operator is called, and what a layer looks like from outside."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx, nn

from pleas_fx.ir import Program

SHORT = {
    "BatchNorm1d": "bn",
    "BatchNorm2d": "bn",
    "BatchNorm3d": "bn",
    "BatchNormAct2d": "bn + act",
    "LayerNorm": "ln",
    "LayerNorm2d": "ln",
    "GroupNorm": "gn",
    "InstanceNorm2d": "in",
    "MultiheadAttention": "attention",
    "AdaptiveAvgPool2d": "avgpool",
    "adaptive_avg_pool2d": "avgpool",
    "AvgPool2d": "avgpool",
    "avg_pool2d": "avgpool",
    "MaxPool2d": "maxpool",
    "max_pool2d": "maxpool",
    "Conv1d": "conv",
    "Conv2d": "conv",
    "Conv3d": "conv",
    "ConvTranspose1d": "up-conv",
    "ConvTranspose2d": "up-conv",
    "ConvTranspose3d": "up-conv",
    "conv1d": "conv",
    "conv2d": "conv",
    "conv3d": "conv",
}
TRANSPOSED = ("convtranspose", "conv_transpose")
READS_BY_DIM = ("conv", "linear")


def module_of(program: Program, node: fx.Node) -> nn.Module | None:
    """The module that a node calls."""
    if node.op != "call_module":
        return None
    return program.module.get_submodule(str(node.target))


def operator_name(node: fx.Node, program: Program | None = None) -> str:
    """The operator as people call it: a class, a function, or an ATen name."""
    if node.op == "call_module" and program is not None:
        return type(module_of(program, node)).__name__
    if isinstance(node.target, str):
        return node.target
    name = str(getattr(node.target, "__name__", node.target))
    return name.split(".")[0]  # ATen overloads are called ``add.Tensor``


def short(node: fx.Node, program: Program) -> str:
    """The operator in one word."""
    name = operator_name(node, program)
    return SHORT.get(name, name.lower().strip("_"))


def weight_dims(node: fx.Node, program: Program) -> tuple[int, int] | None:
    """The dims of ``weight`` that read and that write channels, where the operator fixes them."""
    name = operator_name(node, program).lower()
    if name.startswith(TRANSPOSED):
        return (0, 1)
    return (1, 0) if name.startswith(READS_BY_DIM) else None


def parameter_keys(node: fx.Node, program: Program) -> tuple[str, ...]:
    """The parameters and buffers that a node reads, its ``weight`` first."""
    module = module_of(program, node)
    if module is not None:
        keys = [f"{node.target}.{key}" for key in module.state_dict()]
    else:
        keys = [str(n.target) for n in node.all_input_nodes if n.op == "get_attr"]
    return tuple(keys)


def describe(node: fx.Node, program: Program) -> str:
    """``conv 3×3 /2 64→128``: the operator with the figures that matter."""
    if node.target is operator.getitem:
        index = node.args[1]
        return f"part {index}" if isinstance(index, int) else "slice"
    word = short(node, program)
    module = module_of(program, node)
    weight = getattr(module, "weight", None)
    if module is None or not isinstance(weight, Tensor) or weight_dims(node, program) is None:
        return word
    sizes = [_size(module, names) for names in (INPUTS, OUTPUTS)]
    groups = getattr(module, "groups", 1)
    if groups == sizes[0] == sizes[1]:
        return " ".join(["depthwise", *_kernel(module), str(groups)])
    parts = [word, *_kernel(module), "→".join(str(n) for n in sizes if n is not None)]
    return " ".join(parts if groups == 1 else [*parts, f"in {groups} parts"])


INPUTS = ("in_channels", "in_features")
OUTPUTS = ("out_channels", "out_features")


def _size(module: nn.Module, names: Sequence[str]) -> int | None:
    return next((int(getattr(module, n)) for n in names if hasattr(module, n)), None)


def _kernel(module: nn.Module) -> list[str]:
    kernel: Any = getattr(module, "kernel_size", None)
    stride: Any = getattr(module, "stride", None)
    if not isinstance(kernel, tuple):
        return []
    parts = ["×".join(map(str, kernel))]
    if isinstance(stride, tuple) and max(stride) > 1:
        parts.append(f"/{max(stride)}")
    return parts
