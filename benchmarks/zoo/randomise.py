"""Random weights under which errors show: no two channels alike, activations of order one.

Fresh norms are the identity, fresh layer scales vanish and fresh biases are zero: wrong channel
orders then go unnoticed. Statistics drawn blindly would let deep residual streams overflow, so
batch norms first see data, then what they saw is disturbed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves

from pleas_fx.module_tree import forgetful
from tests.randomise import fan_in

SPREAD = 0.3  # standard deviation of biases, and of running means in units of the true ones
SMALL = 1e-4
LEAST = 1e-3  # variance of a channel: a nearly constant one would be amplified
LOUD = 30.0  # times that a difference may grow: large weights before gates make networks chaotic
HALVINGS = 4
OUTSIDE = 3.0  # times that outputs may be larger on inputs that the norms haven't seen
LARGER = 2  # times that the inputs may be made four times as many


@torch.no_grad()
def randomise(model: nn.Module, inputs: tuple[Tensor, ...], seed: int) -> None:
    """Draw every parameter and running statistic of ``model``, which is left in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in model.eval().modules():
            for name, parameter in module.named_parameters(recurse=False):
                _draw(module, name, parameter)
        inputs = _enough(model, inputs)
        for _ in range(HALVINGS):
            if not _amplification(model, inputs) > LOUD:
                break
            for name, parameter in model.named_parameters():
                if not name.endswith("bias"):  # gains too: norms make up for smaller matrices
                    parameter.mul_(0.5)
            _settle(model, inputs)
    forgetful(model)  # what it computed of other numbers


def _enough(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Settle on as many inputs as it takes for others to give outputs of the same size.

    On few small images deep norms see few values, and others lie far outside of those.
    """
    _settle(model, inputs)
    for _ in range(LARGER):
        others = tuple(torch.randn_like(x) for x in inputs)
        pairs = zip(_tensors(model(*others)), _tensors(model(*inputs)), strict=True)
        if max(float(a.norm() / b.norm().clamp_min(1e-30)) for a, b in pairs) < OUTSIDE:
            break
        fresh = (torch.randn(3 * len(x), *x.shape[1:], dtype=x.dtype) for x in inputs)
        inputs = tuple(torch.cat(pair) for pair in zip(inputs, fresh, strict=True))
        _settle(model, inputs)
    return inputs


def _tensors(outputs: object) -> list[Tensor]:
    return [t for t in tree_leaves(outputs) if isinstance(t, Tensor)]


def _amplification(model: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """How much larger a small relative difference in the inputs is in the outputs.

    On inputs of the same kind: those that the norms have seen are calmer.
    """
    inputs = tuple(torch.randn_like(x) for x in inputs)
    near = tuple(x + SMALL * x * torch.randn_like(x) for x in inputs)
    pairs = zip(_tensors(model(*inputs)), _tensors(model(*near)), strict=True)
    return max(float((a - b).norm() / a.norm().clamp_min(1e-30)) for a, b in pairs) / SMALL


def _draw(module: nn.Module, name: str, parameter: Tensor) -> None:
    if isinstance(module, _ConvNd | nn.Linear) and name == "weight":
        parameter.normal_(0.0, (2.0 / fan_in(module)) ** 0.5)
    elif isinstance(module, nn.PReLU):
        parameter.uniform_(0.1, 0.4)
    elif name.endswith("bias") or not parameter.any():
        parameter.normal_(0.0, SPREAD)
    elif bool((parameter == parameter.flatten()[0]).all()):  # norm weights, layer scales
        parameter.uniform_(0.5, 1.5)


def _settle(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Give running statistics the values seen on ``inputs``, disturbed channel by channel.

    Norm after norm, each behind those already disturbed: else the disturbances would add up.
    """
    norms = [m for m in model.modules() if isinstance(m, _NormBase) and m.running_var is not None]
    hooks = [norm.register_forward_pre_hook(_see) for norm in norms]
    model.eval()(*inputs)  # again: some keep what they compute from weights until they are told
    for hook in hooks:
        hook.remove()


def _see(norm: nn.Module, values: tuple[Tensor, ...]) -> None:
    assert isinstance(norm, _NormBase)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    flat = values[0].movedim(1, -1).flatten(0, -2)
    variance = flat.var(0, correction=0).clamp_min(LEAST)
    shift = variance.sqrt() * torch.randn_like(variance) * SPREAD
    norm.running_mean.copy_(flat.mean(0) + shift)
    norm.running_var.copy_(variance * (torch.rand_like(variance) + 0.5))
