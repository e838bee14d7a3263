"""Fold batch norms into the layers before them, where another source comes without.

That is how networks are deployed; ultralytics does it to a model that has predicted once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from pleas_fx.ir import Program
from pleas_fx.module_tree import attach, twin

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Fold:
    """Options of the pass."""

    name: str = "fold"

    def run(self, programs: Sequence[Program]) -> tuple[Program, ...]:
        return fold(programs)


def fold(programs: Sequence[Program]) -> tuple[Program, ...]:
    """The same programs, or, if that makes them as long as each other, equal ones without norms.

    Only norms that nothing but one layer leads to go; they all do, in all programs.
    """
    if len({_length(program) for program in programs}) == 1:
        return tuple(programs)
    folded = tuple(_folded(program) for program in programs)
    same = len({_length(program) for program in folded}) == 1
    return folded if same else tuple(programs)


def _length(program: Program) -> int:
    return len(program.module.graph.nodes)


def _folded(program: Program) -> Program:
    module = twin(program.module)
    with torch.no_grad():
        for norm, layer in _foldable(module, program.shapes).items():
            attach(module, str(layer.target), _fused(module, layer, norm))
            norm.replace_all_uses_with(layer)
            module.graph.erase_node(norm)
    module.delete_all_unused_submodules()
    module.recompile()
    return replace(program, module=module)


def _foldable(module: fx.GraphModule, shapes: Shapes) -> dict[fx.Node, fx.Node]:
    """Norms, and the layers before them."""
    calls = module.graph.find_nodes(op="call_module")
    uses = Counter(str(node.target) for node in calls)
    found: dict[fx.Node, fx.Node] = {}
    for norm in calls:
        layer = norm.args[0] if len(norm.args) == 1 else None
        if not isinstance(layer, fx.Node) or layer.op != "call_module":
            continue
        alone = list(layer.users) == [norm] and uses[str(layer.target)] == 1
        if alone and uses[str(norm.target)] == 1 and _meets(module, layer, norm, shapes):
            found[norm] = layer
    return found


def _meets(module: nn.Module, layer: fx.Node, norm: fx.Node, shapes: Shapes) -> bool:
    """Whether the norm keeps statistics of just what the layer's weights make."""
    one, two = _modules(module, layer, norm)
    if not isinstance(two, _BatchNorm) or two.running_mean is None:
        return False
    if isinstance(one, nn.Linear):
        return len(shapes[layer.name]) == 2 and two.affine
    if isinstance(one, _ConvTransposeNd):
        return one.groups == 1
    return isinstance(one, _ConvNd)


def _fused(module: nn.Module, layer: fx.Node, norm: fx.Node) -> nn.Module:
    one, two = _modules(module, layer, norm)
    assert isinstance(two, _BatchNorm)
    if isinstance(one, nn.Linear):
        return fuse_linear_bn_eval(one, two)
    assert isinstance(one, _ConvNd)
    return fuse_conv_bn_eval(one, two, isinstance(one, _ConvTransposeNd))


def _modules(module: nn.Module, *nodes: fx.Node) -> list[nn.Module]:
    return [module.get_submodule(str(node.target)) for node in nodes]
