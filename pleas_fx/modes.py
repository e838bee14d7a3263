"""What the caller has switched on in torch, switched off while the library works."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

DEVICES = ("cpu", "cuda")
HOME = torch.device("cpu")


@contextmanager
def plain_modes() -> Iterator[None]:
    """Inside, ordinary tensors are made, on the CPU, in the precision that is asked for."""
    with ExitStack() as modes:
        modes.enter_context(torch.inference_mode(False))
        modes.enter_context(torch.no_grad())  # the other one switches gradients on
        for kind in filter(torch.is_autocast_enabled, DEVICES):
            modes.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != HOME.type:
            modes.enter_context(HOME)
        yield


def ordinary(tensor: Tensor) -> Tensor:
    """No subclass, which may compute otherwise, and nothing made in inference mode."""
    plain = tensor if type(tensor) is Tensor else tensor.detach().as_subclass(Tensor)
    return plain.clone() if plain.is_inference() else plain
