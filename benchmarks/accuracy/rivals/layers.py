"""What the sources' layers read and make on the data, for rivals that fit layer by layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from benchmarks.accuracy.rivals.aligned import Aligned
from passes.rewrite import Site
from pleas_fx.rules.modules import contraction


def fitted_sites(aligned: Aligned) -> list[tuple[Site, nn.Module]]:
    """Convolutions and linear layers of the merged network."""
    found = []
    for site in aligned.rewritten.sites:
        module = aligned.rewritten.module.get_submodule(site.module)
        if contraction(module) is not None:
            found.append((site, module))
    return found


@contextmanager
def recorded(model: nn.Module, names: set[str]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Inputs and outputs of some modules, anew at each call of the model."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def hook(name: str) -> object:
        def keep(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen[name] = (inputs[0], output)

        return model.get_submodule(name).register_forward_hook(keep)

    handles = [hook(name) for name in sorted(names)]
    try:
        with torch.no_grad():
            yield seen
    finally:
        for handle in handles:
            handle.remove()  # type: ignore[attr-defined]
