"""The third front end: torch.export, brought back to public operators and to the model's layers.

It follows what the tracers can't: writes into slices and masks, checks for tensors, vmap.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.graph import CodeGen
from torch.utils._pytree import tree_unflatten

from passes._functional import FunctionalLayer, call_instead, functional_layer
from passes._quiet import quiet

SIZES = ("view", "reshape", "expand", "repeat", "permute")  # take a list as several arguments
Arguments = tuple[Any, ...]


def exported(model: nn.Module, inputs: tuple[Tensor, ...]) -> fx.GraphModule:
    """The graph of ``model`` for any batch size, where torch.export finds one, else for this one.

    Raises:
        Exception: torch.export can't follow the model.
    """
    with quiet(), torch.no_grad():
        try:
            program = _export(model, _several(inputs), batched=True)
        except Exception:  # noqa: BLE001 (sizes may be written into the code)
            program = _export(model, inputs, batched=False)
        module: Any = program.run_decompositions({}).module()
    _plain(module)
    for node in list(module.graph.nodes):
        _make_public(node)
    with torch.no_grad():
        _restore_layers(module)
    module.graph.eliminate_dead_code()
    module.recompile()
    return fx.GraphModule(module, module.graph, type(model).__name__)


def is_exported(model: nn.Module) -> bool:
    """Whether a model is itself what torch.export made: calls of the dispatcher's operators."""
    return isinstance(model, fx.GraphModule) and any(
        isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "aten"
        for node in model.graph.nodes
    )


def _export(
    model: nn.Module, inputs: tuple[Tensor, ...], *, batched: bool
) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch")
    dims = tuple({0: batch} if x.dim() else {} for x in inputs) if batched else None
    return torch.export.export(model, inputs, dynamic_shapes=dims, strict=False)


def _several(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """More than one example: a size of one is taken for a constant."""
    return tuple(torch.cat([x, x]) if x.dim() else x for x in inputs)


def drop_guards(module: fx.GraphModule) -> None:
    """In place: erase calls that check the inputs' sizes, and nothing else."""
    for node in list(module.graph.nodes):
        if not node.users and node.op in ("call_module", "call_function") and _is_guard(node):
            module.graph.erase_node(node)


def _is_guard(node: fx.Node) -> bool:
    name = str(node.target) if node.op == "call_module" else getattr(node.target, "__name__", "")
    return name.startswith(("_guards_fn", "_assert", "sym_constrain", "check"))


def _plain(module: fx.GraphModule) -> None:
    """The result as the model nests it, in the graph instead of around it."""
    spec = module.graph._codegen.pytree_info.out_spec  # type: ignore[attr-defined]
    output = next(n for n in module.graph.nodes if n.op == "output")
    output.args = (tree_unflatten(list(output.args[0]), spec),)
    module.graph.set_codegen(CodeGen())


# -- operators -----------------------------------------------------------------------------------


def _batch_norm(a: Arguments) -> Arguments:
    x, weight, bias, mean, variance, training, momentum, eps = a[:8]
    return x, mean, variance, weight, bias, training, momentum, eps


def _batch_norm_in_eval(a: Arguments) -> Arguments:
    x, weight, bias, mean, variance, momentum, eps = a[:7]
    return x, mean, variance, weight, bias, False, momentum, eps


def _first_five(a: Arguments) -> Arguments:
    return a[:5]


SPECIAL: dict[str, tuple[Callable[..., Any], Callable[[Arguments], Arguments]]] = {
    "aten::batch_norm": (F.batch_norm, _batch_norm),
    "aten::_native_batch_norm_legit_no_training": (F.batch_norm, _batch_norm_in_eval),
    "aten::native_layer_norm": (F.layer_norm, _first_five),
    "aten::layer_norm": (F.layer_norm, _first_five),
    "aten::group_norm": (F.group_norm, _first_five),
}


def _make_public(node: fx.Node) -> None:
    """An operator of the dispatcher as the method or function that one would write."""
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        raise NotImplementedError(f"{node.target} runs graphs of its own")
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return
    name: str = node.target._schema.name
    if name in SPECIAL:
        node.target, arrange = SPECIAL[name]
        node.args = arrange(node.args)
        _take_first(node)
        return
    space, _, short = name.partition("::")
    if space != "aten":
        return
    if short == "sym_size":
        node.op, node.target = "call_method", "size"
    elif hasattr(Tensor, short) and _is_tensor(node.args[0]):
        node.op, node.target = "call_method", short
        if short in SIZES and len(node.args) == 2 and isinstance(node.args[1], (list, tuple)):
            node.args = (node.args[0], *node.args[1])
    else:
        public: Any = getattr(torch, short, None) or getattr(F, short, node.target)
        node.target = public


def _take_first(node: fx.Node) -> None:
    """Of a norm that gives statistics too, which nobody reads in eval mode."""
    for part in [n for n in node.users if n.target is operator.getitem and n.args[1] == 0]:
        part.replace_all_uses_with(node)
        node.meta["val"] = part.meta.get("val")
        node.graph.erase_node(part)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, fx.Node) and isinstance(value.meta.get("val"), Tensor)


# -- layers --------------------------------------------------------------------------------------


def _restore_layers(module: fx.GraphModule) -> None:
    """Calls with the parameters of one module are calls of that module."""
    shapes = {
        node.name: tuple(node.meta["val"].shape)
        for node in module.graph.nodes
        if isinstance(node.meta.get("val"), Tensor)
    }
    for node in list(module.graph.nodes):
        layer = functional_layer(module, node, shapes)
        path = None if layer is None else _path(layer)
        if layer is not None and path:
            call = call_instead(module, node, layer, path)
            shapes[call.name] = shapes[node.name]


def _path(layer: FunctionalLayer) -> str | None:
    """Where all its parameters are, under their usual names."""
    paths = {_owner(key, name) for name, key in layer.keys.items()}
    return paths.pop() if len(paths) == 1 else None


def _owner(key: str, name: str) -> str | None:
    path, _, leaf = key.rpartition(".")
    return path if leaf == name else None
