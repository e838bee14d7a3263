"""Functions that tracing didn't enter (``torch.fx.wrap``), replaced by the operators they make."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.fx.proxy import TraceError

from passes._concrete import Tracer
from pleas_fx.extract import Runner
from pleas_fx.module_tree import twin


def inlined(module: fx.GraphModule, inputs: Sequence[Tensor]) -> fx.GraphModule | None:
    """A copy in which somebody's Python functions are entered; None where there are none.

    Raises:
        TraceError: one can't be followed; or whatever else a function raises on being traced.
    """
    if not any(map(_foreign, module.graph.nodes)):
        return None
    module = twin(module)
    values: dict[fx.Node, Any] = {}
    Runner(module, values.__setitem__).run(*(t.detach().clone() for t in inputs))
    for node in filter(_foreign, list(module.graph.nodes)):
        _inline(module, node, values)
    return fx.GraphModule(module, module.graph, type(module).__name__)


def _foreign(node: fx.Node) -> bool:
    home = str(getattr(node.target, "__module__", "")).partition(".")[0]
    return node.op == "call_function" and inspect.isfunction(node.target) and home not in OURS


OURS = frozenset({"torch", "math", "operator"})  # what an artefact may call


def _inline(module: fx.GraphModule, node: fx.Node, values: dict[fx.Node, Any]) -> None:
    operands = node.all_input_nodes
    given = [values[n] for n in operands]
    if not all(isinstance(v, Tensor) for v in given):
        raise TraceError(f"{node} takes sizes, which would be written into the graph")
    tracer = Tracer(given, ())
    tracer.root, tracer.graph, tracer.tensor_attrs = module, fx.Graph(), {}
    with torch.no_grad():
        proxies = {n: tracer.create_proxy("placeholder", n.name, (), {}) for n in operands}
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: cast(Any, proxies[n]))
        result = cast(Any, node.target)(*args, **kwargs)
    tracer.create_node("output", "output", (tracer.create_arg(result),), {})
    copies = {proxies[n].node: n for n in operands}
    with module.graph.inserting_before(node):
        found = module.graph.graph_copy(tracer.graph, copies)
    if not isinstance(found, fx.Node):
        raise TraceError(f"{node} has several results")
    for made in set(copies.values()) - set(operands):
        made.meta["nn_module_stack"] = node.meta.get("nn_module_stack")
    values[found] = values[node]
    node.replace_all_uses_with(found)
    module.graph.erase_node(node)
