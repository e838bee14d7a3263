"""Random parameters for a network under test, so that no initial value hides an error.

Fresh BatchNorms are the identity, fresh layer scales vanish and fresh biases are zero: wrong
channel orders then go unnoticed. Here everything a channel owns differs from channel to channel,
while activations stay of order one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

Model = TypeVar("Model", bound=nn.Module)

SPREAD = 0.3  # standard deviation of biases and running means


def seeded(build: Callable[[], Model], seed: int) -> Model:
    """Build a network in eval mode with every parameter and statistic random; one per seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build().eval()
        randomise(model)
    return model


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Draw every parameter and running statistic of a network from torch's global generator."""
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        for name, parameter in own.items():
            _draw(module, name, parameter)
        if isinstance(module, _NormBase):
            _draw_statistics(module)


def _draw(module: nn.Module, name: str, parameter: Tensor) -> None:
    if isinstance(module, nn.RNNBase):
        parameter.normal_(0.0, module.hidden_size**-0.5)
    elif name == "bias":
        parameter.normal_(0.0, SPREAD)
    elif isinstance(module, _ConvNd | nn.Linear):
        parameter.normal_(0.0, (2.0 / fan_in(module)) ** 0.5)
    elif isinstance(module, nn.PReLU):
        parameter.uniform_(0.1, 0.4)
    else:  # weights of normalisations, layer scales
        parameter.uniform_(0.5, 1.5)


def fan_in(module: _ConvNd | nn.Linear) -> float:
    """How many products are summed into one output value."""
    if isinstance(module, nn.Linear):
        return module.in_features
    taps = float(torch.Size(module.kernel_size).numel()) * module.in_channels / module.groups
    if isinstance(module, _ConvTransposeNd):
        taps /= torch.Size(module.stride).numel()
    return taps


def _draw_statistics(norm: _NormBase) -> None:
    if norm.running_mean is not None and norm.running_var is not None:
        norm.running_mean.normal_(0.0, SPREAD)
        norm.running_var.uniform_(0.5, 1.5)
