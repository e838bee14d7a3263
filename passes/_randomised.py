"""Weights under which a wrong group shows: nothing at its initial value, nothing out of scale."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

Inputs = tuple[Tensor, ...]


LOUD = 1e4  # times that a difference in the inputs may grow: rounding then stays below 1e-11
HALVINGS = 16  # at most; it ends where the network is steady
NORMS = {norm: signature(norm) for norm in (F.batch_norm, F.instance_norm)}


def randomised(
    module: fx.GraphModule, inputs: Inputs, seed: int
) -> tuple[fx.GraphModule, list[Tensor]]:
    """A float64 copy whose vectors, statistics and constant tensors are random; its outputs.

    Statistics drawn blindly let deep networks overflow their gates: norms first see the inputs,
    then what they saw is disturbed.
    """
    result = _widened(module)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, tensor in result.state_dict(keep_vars=True).items():
            _draw(key, tensor, generator)
        _settle(result, inputs, generator)
        return result, _outputs(result, inputs)


def steadied(
    module: fx.GraphModule, inputs: Inputs, outputs: list[Tensor], seed: int
) -> list[Tensor]:
    """Shrink the matrices of a randomised network, in place, until it is steady; its outputs.

    Any weights will do as evidence, but not any rounding: large weights in front of gates make
    networks chaotic.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _ in range(HALVINGS):
            if not _amplification(module, inputs, outputs, generator) > LOUD:
                return outputs
            for parameter in module.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(0.5)
            _settle(module, inputs, generator)
            outputs = _outputs(module, inputs)
        return outputs


def _widened(module: fx.GraphModule) -> fx.GraphModule:
    """A copy in float64, casts to float32 that the graph spells out included."""
    result = copy.deepcopy(module).double()
    for node in result.graph.nodes:
        node.args, node.kwargs = map_aggregate((node.args, node.kwargs), _wide)
        if node.op == "call_method" and node.target == "float":
            node.target = "double"
    result.recompile()
    return result


def _wide(argument: Any) -> Any:
    return torch.float64 if argument is torch.float32 else argument


def _amplification(
    module: nn.Module, inputs: Inputs, outputs: Sequence[Tensor], generator: torch.Generator
) -> float:
    """How much larger a small relative difference in the inputs is in the outputs."""
    size = 1e-12
    near = tuple(t + size * t * _normal(t, generator) for t in inputs)
    pairs = [
        (a, b)
        for a, b in zip(outputs, _outputs(module, near), strict=True)
        if a.is_floating_point()
    ]
    changes = [float((a - b).norm() / a.norm().clamp_min(1e-30)) for a, b in pairs]
    return max(changes, default=0.0) / size


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    if not like.is_floating_point():
        return torch.zeros_like(like)
    return torch.randn(like.shape, generator=generator).to(like)


def _outputs(module: nn.Module, inputs: Inputs) -> list[Tensor]:
    leaves = tree_leaves(module(*(t.clone() for t in inputs)))
    return [t for t in leaves if isinstance(t, Tensor)]


def _draw(key: str, tensor: Tensor, generator: torch.Generator) -> None:
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return
    if bool(torch.isinf(tensor).any()):  # a limit or a mask: between random ones nothing is left
        return
    flat = tensor.detach().reshape(-1)
    if tensor.dim() <= 1 or bool((flat == flat[0]).all()):
        noise = torch.rand(tensor.shape, generator=generator).to(tensor) + 0.5
        centred = key.endswith(("bias", "running_mean"))
        tensor.copy_(noise - 1.0 if centred else noise)


def _settle(module: nn.Module, inputs: Inputs, generator: torch.Generator) -> None:
    """Norms with statistics take those of ``inputs``, each channel's disturbed by itself.

    Norm after norm, each behind those already disturbed: else the disturbances would add up, and
    the gates of deep networks all close.
    """
    with _Settling(generator):
        module(*(t.clone() for t in inputs))


class _Settling(TorchFunctionMode):
    """Sets running statistics just before they are used, by modules or by functional calls."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in NORMS:
            given = NORMS[func].bind(*args, **kwargs).arguments
            mean, variance = given.get("running_mean"), given.get("running_var")
            if mean is not None and variance is not None:
                _disturb(mean, variance, given["input"], self.generator)
        return func(*args, **kwargs)


def _disturb(mean: Tensor, variance: Tensor, seen: Tensor, generator: torch.Generator) -> None:
    """Statistics of ``seen`` (n, channels, ...) and noise.

    Of a single value a channel there is no variance: the blind draw stays.
    """
    rows = seen.movedim(1, -1).flatten(0, -2)
    if len(rows) < 2:
        return
    found = rows.var(0, correction=0)
    spread = found.mean().clamp_min(1e-12)
    noise = torch.rand((2, *found.shape), generator=generator).to(found)
    mean.copy_(rows.mean(0) + (noise[0] - 0.5) * spread.sqrt())
    variance.copy_((found + 0.1 * spread) * (noise[1] + 0.5))
