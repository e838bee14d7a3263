"""Modules of somebody's own that compute what a batch norm does are batch norms.

Detectors freeze theirs: the same parameters and statistics as buffers, the map written out. As a
norm it is fitted with the layer before it, and its statistics tell what it was trained on.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from passes._results import called
from pleas_fx.module_tree import twin

TENSORS = {"weight", "bias", "running_mean", "running_var"}
COUNTER = "num_batches_tracked"
EPSILON = 1e-5  # where the module names none
CLOSE = 1e-5  # relative
KINDS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}  # by dims


def with_norms(own: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    """A module that nobody else has, in eval mode; in place, but for itself."""
    candidates = {path for path, m in own.named_modules() if path and _has_tensors_of_norm(m)}
    for path, dims in _dims(own, candidates, inputs).items():
        parent, _, name = path.rpartition(".")
        modules = own.get_submodule(parent)._modules
        modules[name] = _as_norm(own.get_submodule(path), dims)
    return own


def _has_tensors_of_norm(module: nn.Module) -> bool:
    if type(module).__module__.startswith("torch.nn.") or module._modules:
        return False
    tensors = module.state_dict(keep_vars=True)
    if tensors.keys() - {COUNTER} != TENSORS:
        return False
    return {(tensors[n].dim(), tensors[n].numel()) for n in TENSORS} == {
        (1, tensors["weight"].numel())
    }


def _dims(
    own: nn.Module, candidates: Collection[str], inputs: tuple[Tensor, ...]
) -> dict[str, int]:
    """How many dims each sees; none where the model fails, which tracing then says."""
    if not candidates:
        return {}
    seen: dict[str, set[int]] = {path: set() for path in candidates}
    other = twin(own)  # a run may leave something behind
    for path, dims in seen.items():

        def note(_: nn.Module, given: tuple[Any, ...], dims: set[int] = dims) -> None:
            dims.update(t.dim() for t in given if isinstance(t, Tensor))

        other.get_submodule(path).register_forward_pre_hook(note)
    with suppress(Exception):
        called(other, inputs)
    return {path: dims.pop() for path, dims in seen.items() if len(dims) == 1}


def _as_norm(module: nn.Module, dims: int) -> nn.Module:
    if dims not in KINDS:
        return module
    tensors = module.state_dict(keep_vars=True)
    mean, eps = tensors["running_mean"], getattr(module, "eps", EPSILON)
    number = float(eps) if isinstance(eps, (int, float)) else EPSILON
    norm = KINDS[dims](len(mean), eps=number, device=mean.device, dtype=mean.dtype).eval()
    norm.weight, norm.bias = _parameter(tensors["weight"]), _parameter(tensors["bias"])
    norm.running_mean, norm.running_var = mean, tensors["running_var"]
    return norm if _same(module, norm, dims) else module


def _parameter(tensor: Tensor) -> nn.Parameter:
    if isinstance(tensor, nn.Parameter):
        return tensor
    return nn.Parameter(tensor, requires_grad=False)


def _same(module: nn.Module, norm: _BatchNorm, dims: int) -> bool:
    """Whether a module computes what the norm does, on numbers of the size that it expects."""
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    generator = torch.Generator().manual_seed(0)
    space = [1] * (dims - 2)
    noise = torch.randn(3, len(mean), *[2 * n for n in space], generator=generator).to(mean)
    with torch.no_grad():
        spread = variance.clamp_min(0).sqrt()
        images = noise * spread.view(-1, *space) + mean.view(-1, *space)
        wanted = F.batch_norm(images, mean, variance, norm.weight, norm.bias, eps=norm.eps)
        try:
            found = module(images)
        except Exception:  # noqa: BLE001 (anybody's code)
            return False
    if not isinstance(found, Tensor) or found.shape != wanted.shape:
        return False
    return bool((found - wanted).norm() <= CLOSE * wanted.norm())
