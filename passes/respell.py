"""Write operators without parameters in one way: libraries call the same ones differently.

A module, a function, a method; the mean over all positions or a pooling to one; ``view`` or
``flatten``. Layers stay what they are.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from passes.trace import traced
from pleas_fx.ir import Program
from pleas_fx.module_tree import twin

REQUIRED = object()  # an option without a default
SPACE = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
EVERY_DIM = (  # a number for each, or one for all
    *("kernel_size", "stride", "padding", "dilation", "output_size"),
    *("size", "scale_factor"),
)
POOLING = {"kernel_size": REQUIRED, "stride": None, "padding": 0}
LARGEST = {**POOLING, "dilation": 1, "ceil_mode": False}
MEAN = {**POOLING, "ceil_mode": False, "count_include_pad": True}
GATES: Mapping[Any, Callable[..., Any]] = {torch.sigmoid: F.silu, F.hardsigmoid: F.hardswish}
RELU6 = {"min_val": 0.0, "max_val": 6.0}
RESIZING = {"size": None, "scale_factor": None, "mode": "nearest", "align_corners": None}

Shapes = Mapping[fx.Node, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Spelling:
    """An operator of one tensor (or of two, or a list): how it is written from now on, and was.

    ``options``: what else it is given, in order, with the defaults.
    """

    function: Callable[..., Any]
    modules: tuple[type[nn.Module], ...] = ()
    functions: tuple[Callable[..., Any], ...] = ()
    methods: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    operands: int = 1


SPELLINGS = (
    Spelling(F.relu, (nn.ReLU,), (torch.relu,), ("relu",)),
    Spelling(F.relu6, (nn.ReLU6,)),
    Spelling(F.hardtanh, (nn.Hardtanh,), options={"min_val": -1.0, "max_val": 1.0}),
    Spelling(F.silu, (nn.SiLU,)),
    Spelling(F.gelu, (nn.GELU,), options={"approximate": "none"}),
    Spelling(F.mish, (nn.Mish,)),
    Spelling(F.selu, (nn.SELU,), (torch.selu,)),
    Spelling(F.hardswish, (nn.Hardswish,)),
    Spelling(F.hardsigmoid, (nn.Hardsigmoid,)),
    Spelling(torch.sigmoid, (nn.Sigmoid,), (F.sigmoid,), ("sigmoid",)),
    Spelling(torch.tanh, (nn.Tanh,), (F.tanh,), ("tanh",)),
    Spelling(F.elu, (nn.ELU,), options={"alpha": 1.0}),
    Spelling(F.leaky_relu, (nn.LeakyReLU,), options={"negative_slope": 0.01}),
    Spelling(F.softplus, (nn.Softplus,), options={"beta": 1.0, "threshold": 20.0}),
    Spelling(F.softmax, (nn.Softmax,), (torch.softmax,), ("softmax",), {"dim": REQUIRED}),
    Spelling(
        F.log_softmax, (nn.LogSoftmax,), (torch.log_softmax,), ("log_softmax",), {"dim": REQUIRED}
    ),
    Spelling(F.max_pool1d, (nn.MaxPool1d,), (torch.max_pool1d,), options=LARGEST),
    Spelling(F.max_pool2d, (nn.MaxPool2d,), (torch.max_pool2d,), options=LARGEST),
    Spelling(F.max_pool3d, (nn.MaxPool3d,), (torch.max_pool3d,), options=LARGEST),
    Spelling(F.avg_pool1d, (nn.AvgPool1d,), options=MEAN),
    Spelling(F.avg_pool2d, (nn.AvgPool2d,), options=MEAN),
    Spelling(F.avg_pool3d, (nn.AvgPool3d,), options=MEAN),
    Spelling(SPACE[1], (nn.AdaptiveAvgPool1d,), options={"output_size": REQUIRED}),
    Spelling(SPACE[2], (nn.AdaptiveAvgPool2d,), options={"output_size": REQUIRED}),
    Spelling(SPACE[3], (nn.AdaptiveAvgPool3d,), options={"output_size": REQUIRED}),
    Spelling(F.interpolate, (nn.Upsample,), options=RESIZING),
    Spelling(
        torch.flatten, (nn.Flatten,), (), ("flatten",), options={"start_dim": 0, "end_dim": -1}
    ),
    Spelling(torch.mean, (), (), ("mean",), options={"dim": None, "keepdim": False}),
    Spelling(torch.cat, (), (torch.concat, torch.concatenate), options={"dim": 0}),
    Spelling(torch.chunk, (), (), ("chunk",), options={"chunks": REQUIRED, "dim": 0}),
    Spelling(torch.transpose, (), (), ("transpose",), options={"dim0": REQUIRED, "dim1": REQUIRED}),
    Spelling(operator.sub, (), (torch.sub, operator.isub), ("sub",), operands=2),
    Spelling(operator.truediv, (), (torch.div, operator.itruediv), ("div",), operands=2),
    Spelling(operator.add, (), (torch.add, operator.iadd), ("add",), operands=2),
    Spelling(operator.mul, (), (torch.mul, operator.imul), ("mul",), operands=2),
)
_OF_MODULE = {kind: s for s in SPELLINGS for kind in s.modules}
_OF_FUNCTION: Mapping[Any, Spelling] = {
    function: s for s in SPELLINGS for function in (s.function, *s.functions)
}
_OF_METHOD = {method: s for s in SPELLINGS for method in s.methods}
OTHER_NAMES = {"tensors": 0, "input": 0, "other": 1}  # of operands
USUAL = {  # what every operator of the table is given, if anything
    **dict.fromkeys(("dtype", "divisor_override", "recompute_scale_factor")),
    **dict.fromkeys(("return_indices", "antialias"), False),
}


@dataclass(frozen=True, slots=True)
class Respell:
    """Options of the pass."""

    name: str = "respell"

    def run(self, program: Program) -> Program:
        return respell(program)


def respell(program: Program) -> Program:
    """An equal program with one way of writing for every operator of :data:`SPELLINGS`."""
    module = twin(program.module)
    shapes = {n: program.shapes[n.name] for n in module.graph.nodes if n.name in program.shapes}
    for node in list(module.graph.nodes):
        with module.graph.inserting_before(node):
            instead = _written(module, node, shapes)
        if instead is not None:
            shapes[instead] = shapes.get(node, ())
            node.replace_all_uses_with(instead)
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    layers = {str(node.target) for node in module.graph.find_nodes(op="call_module")}
    return replace(traced(module, program.inputs, leaves=layers), general=program.general)


def _written(module: fx.GraphModule, node: fx.Node, shapes: Shapes) -> fx.Node | None:
    """What stands for a node now, where that is something else."""
    if _flattens(node, shapes):
        return node.graph.call_function(torch.flatten, (node.args[0],), {"start_dim": 1})
    if node.target in ("permute", torch.permute) and not node.kwargs:
        return node.graph.call_function(torch.permute, (node.args[0], _order(node.args[1:])))
    found = _given(module, node)
    if found is None:
        return None
    spelling, operands, options = found
    if spelling.function is torch.mean:
        return _mean_of_positions(node, operands[0], options, shapes)
    if spelling.function is F.hardtanh and options == RELU6:
        return node.graph.call_function(F.relu6, operands)
    if spelling.function is operator.mul and (gated := _gated(operands)) is not None:
        return node.graph.call_function(gated[0], (gated[1],))
    return node.graph.call_function(spelling.function, operands, options)


Given = tuple[Spelling, tuple[Any, ...], dict[str, Any]]


def _given(module: fx.GraphModule, node: fx.Node) -> Given | None:
    """The spelling, the operands, and the options that aren't the defaults."""
    if node.op == "call_module":
        return _to_layer(module.get_submodule(str(node.target)), node)
    if node.op == "call_method":
        return _to_call(_OF_METHOD.get(str(node.target)), node)
    return _to_call(_OF_FUNCTION.get(node.target), node) if node.op == "call_function" else None


def _to_layer(layer: nn.Module, node: fx.Node) -> Given | None:
    spelling = _OF_MODULE.get(type(layer))
    if spelling is None or any(getattr(layer, k, v) != v for k, v in USUAL.items()):
        return None
    places, named = _arguments(node)
    if named or places.keys() != set(range(spelling.operands)):
        return None
    values = {name: getattr(layer, name) for name in spelling.options}
    return spelling, tuple(places[k] for k in sorted(places)), _plain(spelling, values)


def _to_call(spelling: Spelling | None, node: fx.Node) -> Given | None:
    if spelling is None:
        return None
    places, named = _arguments(node)
    operands = tuple(_plain_list(places.pop(k, None)) for k in range(spelling.operands))
    names = dict(enumerate(spelling.options, start=spelling.operands))
    if None in operands or not places.keys() <= names.keys():
        return None
    values = {names[k]: v for k, v in places.items()} | named
    known = values.keys() <= spelling.options.keys()
    return (spelling, operands, _plain(spelling, values)) if known else None


def _arguments(node: fx.Node) -> tuple[dict[int, Any], dict[str, Any]]:
    """By place, operands that are named, too; and by name, without what changes nothing."""
    named = {k: v for k, v in node.kwargs.items() if k not in USUAL or v != USUAL[k]}
    named.pop("inplace", None)
    moved = {OTHER_NAMES[k]: named.pop(k) for k in list(named) if k in OTHER_NAMES}
    return dict(enumerate(node.args)) | moved, named


def _order(dims: Sequence[Any]) -> tuple[Any, ...]:
    """As one argument or as several."""
    one = dims[0] if len(dims) == 1 else None
    return tuple(one if isinstance(one, (tuple, list)) else dims)


def _gated(operands: tuple[Any, ...]) -> tuple[Callable[..., Any], Any] | None:
    """The activation that a value times a function of just that value is; and the value."""
    one, two = operands
    for value, gate in ((one, two), (two, one)):
        if isinstance(gate, fx.Node) and gate.args == (value,) and gate.target in GATES:
            return GATES[gate.target], value
    return None


def _plain_list(operand: Any) -> Any:
    return tuple(operand) if isinstance(operand, list) else operand


def _plain(spelling: Spelling, values: Mapping[str, Any]) -> dict[str, Any]:
    """The options in their order; one number where it is the same along every dim."""
    known = {name: _one(v) if name in EVERY_DIM else v for name, v in values.items()}
    if "kernel_size" in known and known.get("stride") == known["kernel_size"]:
        known["stride"] = None
    return {
        name: known[name]
        for name, usual in spelling.options.items()
        if name in known and (usual is REQUIRED or known[name] != usual)
    }


def _one(value: Any) -> Any:
    if isinstance(value, (tuple, list)) and len(set(value)) == 1:
        return value[0]
    return value


def _flattens(node: fx.Node, shapes: Shapes) -> bool:
    """``view`` or ``reshape`` to a row an example."""
    given = node.args[0] if node.args else None
    if node.op != "call_method" or node.target not in ("view", "reshape"):
        return False
    if not isinstance(given, fx.Node) or node not in shapes or given not in shapes:
        return False
    before, after = shapes[given], shapes[node]
    to_rows = isinstance(node.args[1], fx.Node) or node.args[1] == -1
    return bool(to_rows and len(before) > 2 and after == (before[0], math.prod(before[1:])))


def _mean_of_positions(
    node: fx.Node, given: Any, options: Mapping[str, Any], shapes: Shapes
) -> fx.Node | None:
    """Pooling to one position, and without its dims unless they are kept."""
    dims = options.get("dim")
    rank = len(shapes.get(given, ()))
    if not isinstance(dims, (tuple, list)) or rank - 2 not in SPACE:
        return None
    if sorted(d % rank for d in dims) != list(range(2, rank)):
        return None
    pooled = node.graph.call_function(SPACE[rank - 2], (given,), {"output_size": 1})
    if options.get("keepdim", False):
        return pooled
    return node.graph.call_function(torch.flatten, (pooled,), {"start_dim": 1})
