"""What batch norms see of inputs, against the statistics that they keep."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

See = Callable[[_BatchNorm, Tensor], Tensor | None]  # None: nothing to tell


def keeping(module: nn.Module) -> list[_BatchNorm]:
    """The norms that keep statistics."""
    return [m for m in module.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


@contextmanager
def watched(module: nn.Module, see: See) -> Iterator[list[Tensor]]:
    """What ``see`` makes of the inputs of every norm that the module runs."""
    found: list[Tensor] = []

    def hook(norm: nn.Module, given: tuple[Tensor, ...], _: object) -> None:
        assert isinstance(norm, _BatchNorm)
        seen = see(norm, given[0])
        if seen is not None:
            found.append(seen)

    handles = [norm.register_forward_hook(hook) for norm in keeping(module)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def divergence(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> Tensor:
    """(…, C) Kullback-Leibler, of normal distributions: what is seen from what is kept."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    kept = norm.running_var + norm.eps
    ratio = (variance + norm.eps) / kept
    shift = (mean - norm.running_mean).square() / kept
    return 0.5 * (shift + ratio - 1 - ratio.log())
