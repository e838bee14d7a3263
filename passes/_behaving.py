"""Modules of somebody's own that compute what a batch norm does are batch norms.

Detectors freeze theirs: the same parameters and statistics as buffers, the map written out. As a
norm it is fitted with the layer before it, and its statistics tell what it was trained on.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TENSORS = {"weight", "bias", "running_mean", "running_var"}
COUNTER = "num_batches_tracked"
EPSILON = 1e-5  # where the module names none
CLOSE = 1e-5  # relative


def with_norms(own: nn.Module) -> nn.Module:
    """A module that nobody else has, in eval mode; in place, but for itself."""
    for parent in list(own.modules()):
        for name, child in parent._modules.items():
            if child is not None:
                parent._modules[name] = _as_norm(child)
    return own


def _as_norm(module: nn.Module) -> nn.Module:
    tensors = module.state_dict(keep_vars=True)
    if type(module).__module__.startswith("torch.nn.") or tensors.keys() - {COUNTER} != TENSORS:
        return module
    sizes = {(tensors[name].dim(), tensors[name].numel()) for name in TENSORS}
    if sizes != {(1, tensors["weight"].numel())} or module._modules:
        return module
    norm = _norm({name: tensors[name] for name in TENSORS}, getattr(module, "eps", EPSILON))
    return norm if _same(module, norm) else module


def _norm(tensors: dict[str, Tensor], eps: object) -> nn.BatchNorm2d:
    mean = tensors["running_mean"]
    scale = float(eps) if isinstance(eps, (int, float)) else EPSILON
    norm = nn.BatchNorm2d(len(mean), eps=scale, device=mean.device, dtype=mean.dtype).eval()
    norm.weight = _parameter(tensors["weight"])
    norm.bias = _parameter(tensors["bias"])
    norm.running_mean, norm.running_var = mean, tensors["running_var"]
    return norm


def _parameter(tensor: Tensor) -> nn.Parameter:
    if isinstance(tensor, nn.Parameter):
        return tensor
    return nn.Parameter(tensor, requires_grad=False)


def _same(module: nn.Module, norm: nn.BatchNorm2d) -> bool:
    """Whether a module computes what the norm does, on numbers of the size that it expects."""
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(3, len(mean), 2, 2, generator=generator).to(mean)
    with torch.no_grad():
        images = noise * variance.clamp_min(0).sqrt().view(-1, 1, 1) + mean.view(-1, 1, 1)
        wanted = F.batch_norm(images, mean, variance, norm.weight, norm.bias, eps=norm.eps)
        try:
            found = module(images)
        except Exception:  # noqa: BLE001 (anybody's code)
            return False
    if not isinstance(found, Tensor) or found.shape != wanted.shape:
        return False
    return bool((found - wanted).norm() <= CLOSE * wanted.norm())
