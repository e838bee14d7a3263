"""Give all sources the same layers where their values can make up for what differs.

A bias that one source lacks is zero there, a norm without a scale has ones, and what a batch norm
adds to its variance its scale can take in. Momentum matters in training only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.conv import _ConvNd

from pleas_fx.ir import Program
from pleas_fx.module_tree import twin

LAYERS = (_ConvNd, nn.Linear)
NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
SIZES = ("normalized_shape", "num_features", "num_channels", "out_channels", "out_features")
AFFINE = ("affine", "elementwise_affine")  # what norms call it


@dataclass(frozen=True, slots=True)
class Conform:
    """Options of the pass."""

    name: str = "conform"

    def run(self, programs: Sequence[Program]) -> tuple[Program, ...]:
        return conform(programs)


def conform(programs: Sequence[Program]) -> tuple[Program, ...]:
    """Equal programs with the same biases, scales and options of norms, node by node.

    What differs otherwise, the operators or their number, stays for :func:`passes.compare.compare`.
    """
    modules = [twin(program.module) for program in programs]
    with torch.no_grad():
        for nodes in zip(*(module.graph.nodes for module in modules), strict=False):
            if all(node.op == "call_module" for node in nodes):
                _even([m.get_submodule(str(n.target)) for m, n in zip(modules, nodes, strict=True)])
    return tuple(replace(p, module=m) for p, m in zip(programs, modules, strict=True))


def _even(layers: Sequence[nn.Module]) -> None:
    """Layers in one place, in place."""
    if len({type(layer) for layer in layers}) > 1:
        return
    if isinstance(layers[0], LAYERS):
        _fill(layers, "bias", 0.0)
    if isinstance(layers[0], NORMS):
        _fill(layers, "weight", 1.0)
        _fill(layers, "bias", 0.0)
    norms = [layer for layer in layers if isinstance(layer, _NormBase)]
    for norm in norms:
        norm.momentum = norms[0].momentum
    _add_alike([norm for norm in norms if isinstance(norm, _BatchNorm)])


def _fill(layers: Sequence[nn.Module], name: str, value: float) -> None:
    """What stands for a parameter that only some of them have."""
    known = [own for layer in layers if (own := _own(layer, name)) is not None]
    if len(known) not in (0, len(layers)):
        for layer in layers:
            _complete(layer, name, value, known[0])


def _complete(layer: nn.Module, name: str, value: float, like: Tensor) -> None:
    """Give a layer a parameter of equal entries, unless it has one."""
    if _own(layer, name) is None:
        filled = torch.full(_size(layer), value, dtype=like.dtype, device=like.device)
        layer.register_parameter(name, nn.Parameter(filled, like.requires_grad))
    for option in AFFINE:
        if hasattr(layer, option):
            setattr(layer, option, True)


def _own(layer: nn.Module, name: str) -> Tensor | None:
    found = getattr(layer, name, None)
    return found if isinstance(found, Tensor) else None


def _size(layer: nn.Module) -> tuple[int, ...]:
    """Of its bias or scale."""
    size = next(getattr(layer, name) for name in SIZES if hasattr(layer, name))
    return tuple(size) if isinstance(size, (tuple, list)) else (int(size),)


def _add_alike(norms: Sequence[_BatchNorm]) -> None:
    """The same is added to every variance, the largest: scales make up for it."""
    variances = [own for norm in norms if (own := _own(norm, "running_var")) is not None]
    if len(variances) < len(norms) or len({norm.eps for norm in norms}) < 2:
        return
    largest = max(norm.eps for norm in norms)
    for norm, variance in zip(norms, variances, strict=True):
        _complete(norm, "weight", 1.0, variance)
        _complete(norm, "bias", 0.0, variance)
        factor = ((variance.double() + largest) / (variance.double() + norm.eps)).sqrt()
        scale = (norm.weight.double() * factor).to(norm.weight)
        norm.weight = nn.Parameter(scale, norm.weight.requires_grad)
        norm.eps = largest
