"""``nn.MultiheadAttention`` as the layers it consists of: its channels are others' and its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx, nn

from pleas_fx.module_tree import attach

PROJECTIONS = ("query", "key", "value")
PARAMETERS = (*PROJECTIONS, "key_padding_mask", "need_weights", "attn_mask")


def unfold_attention(module: fx.GraphModule, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """In place, where it is called once, without a mask, and nobody reads the attention weights.

    Vaswani et al. 2017: heads of q kᵀ / √d, normalised, times v; all linear layers are the
    module's own.
    """
    calls = list(module.graph.find_nodes(op="call_module"))
    times = Counter(str(node.target) for node in calls)
    for node in calls:
        layer = module.get_submodule(str(node.target))
        if type(layer) is not nn.MultiheadAttention or times[str(node.target)] > 1:
            continue
        inputs = _inputs(node)
        if inputs is None or not _is_plain(layer) or len(shapes.get(inputs[0].name, ())) != 3:
            continue
        with module.graph.inserting_before(node):
            result = _unfolded(module, node, layer, inputs)
        for part in list(node.users):
            part.replace_all_uses_with(result)
            module.graph.erase_node(part)
        module.graph.erase_node(node)


def _inputs(node: fx.Node) -> list[fx.Node] | None:
    """What is asked, compared with and mixed; None where more is given, or read."""
    given: dict[str, Any] = dict(zip(PARAMETERS, node.args, strict=False)) | node.kwargs
    masks = (given.get("key_padding_mask"), given.get("attn_mask"))
    parts = [(part.op, part.args[1:]) for part in node.users]
    if len(node.args) > len(PARAMETERS) or any(mask is not None for mask in masks):
        return None
    if given.get("is_causal") or any(part != ("call_function", (0,)) for part in parts):
        return None
    return [given[name] for name in PROJECTIONS]


def _is_plain(layer: nn.MultiheadAttention) -> bool:
    return layer.bias_k is None and layer.bias_v is None and not layer.add_zero_attn


def _unfolded(
    module: fx.GraphModule, node: fx.Node, layer: nn.MultiheadAttention, inputs: Sequence[fx.Node]
) -> fx.Node:
    graph, heads = module.graph, []
    for name, x, (weight, bias) in zip(PROJECTIONS, inputs, _projections(layer), strict=True):
        if not layer.batch_first:
            x = graph.call_method("transpose", (x, 0, 1))
        path = f"{node.name}_{name}"
        attach(module, path, _linear(weight, bias))
        made = graph.call_module(path, (x,))
        split = graph.call_method("unflatten", (made, 2, (layer.num_heads, layer.head_dim)))
        heads.append(graph.call_method("transpose", (split, 1, 2)))
    mixed: Any = graph.call_function(F.scaled_dot_product_attention, tuple(heads))
    mixed = graph.call_method("transpose", (mixed, 1, 2))
    mixed = graph.call_method("flatten", (mixed, 2))
    path = f"{node.name}_out"
    attach(module, path, _linear(layer.out_proj.weight, layer.out_proj.bias))
    result = graph.call_module(path, (mixed,))
    return result if layer.batch_first else graph.call_method("transpose", (result, 0, 1))


def _projections(layer: Any) -> list[tuple[Tensor, Tensor | None]]:
    """Weight and bias of each, views of what the module has."""
    size = layer.embed_dim
    biases = [None] * 3 if layer.in_proj_bias is None else layer.in_proj_bias.split(size)
    if layer.in_proj_weight is None:
        weights = [layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight]
    else:
        weights = layer.in_proj_weight.split(size)
    return list(zip(weights, biases, strict=True))


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A layer that holds these very numbers."""
    outputs, inputs = weight.shape
    layer = nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer
