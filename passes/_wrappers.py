"""What stands around a model and isn't part of it: compiled and parallel wrappers, hooks that only
watch, reduced precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from passes._results import called, tensors
from pleas_fx.module_tree import twin

HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)
WRAPPERS = {
    "OptimizedModule": "_orig_mod",  # torch.compile
    "DataParallel": "module",
    "DistributedDataParallel": "module",
}


def unwrapped(own: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    """A module that nobody else has, without wrappers and without hooks that only watch."""
    return _unwatched(_direct(own), inputs)


class _Direct(nn.Module):
    """Calls the module inside, which keeps its path."""

    def __init__(self, name: str, module: nn.Module) -> None:
        super().__init__()
        self._modules[name] = module
        self._inside = name
        self.training = module.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.get_submodule(self._inside)(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:  # what is asked of the wrapper is asked of what it wraps
            if "_inside" not in vars(self):
                raise
            return getattr(self._modules[self._inside], name)


def _direct(own: nn.Module) -> nn.Module:
    for parent in list(own.modules()):
        for name, child in parent._modules.items():
            if child is not None:
                parent._modules[name] = _without_wrapper(child)
    return _without_wrapper(own)


def _without_wrapper(module: nn.Module) -> nn.Module:
    name = _wraps(module)
    return _Direct(name, module.get_submodule(name)) if name else module


def _wraps(module: nn.Module) -> str | None:
    kind = type(module)
    return WRAPPERS.get(kind.__name__) if kind.__module__.startswith("torch.") else None


def innermost(module: nn.Module) -> nn.Module:
    """The module itself, or what wrappers of torch's have inside."""
    name = _wraps(module)
    return innermost(module.get_submodule(name)) if name else module


def hooked(module: nn.Module) -> bool:
    """Whether calling the module runs hooks besides its ``forward``."""
    return any(getattr(module, name, None) for name in HOOKS)


def _unwatched(own: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    """Without hooks if nothing computes anything else then."""
    watched = [m for m in own.modules() if hooked(m) and not _keeps_tensors(m)]
    if not watched:
        return own
    bare = twin(own)
    for module in bare.modules():
        if not _keeps_tensors(module):
            for name in HOOKS:
                getattr(module, name, {}).clear()
    try:
        return bare if _agree(twin(own), twin(bare), inputs) else own
    except Exception:  # noqa: BLE001 (anybody's code: tracing says what is wrong)
        return own


def _keeps_tensors(module: nn.Module) -> bool:
    """That are no parameters: hooks compute them (``weight_norm``, pruning, equalised rates)."""
    return any(isinstance(value, Tensor) for value in vars(module).values())


def _agree(one: nn.Module, other: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    found, wanted = (tensors(called(model, inputs)) for model in (one, other))
    return len(found) == len(wanted) and all(
        a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
        for a, b in zip(found, wanted, strict=True)
    )


@contextmanager
def full_precision() -> Iterator[None]:
    """Inside, ``torch.autocast`` does nothing: it is for whoever runs a network to choose."""
    kind = torch.amp.autocast_mode.autocast
    enter, leave = kind.__enter__, kind.__exit__
    kind.__enter__ = lambda self: self  # type: ignore[method-assign]
    kind.__exit__ = lambda *_: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        kind.__enter__, kind.__exit__ = enter, leave  # type: ignore[method-assign]
