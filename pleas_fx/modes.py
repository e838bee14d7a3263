"""Modes of torch: the library's own, and the caller's, which are off while it works."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

DEVICES = ("cpu", "cuda")
HOME = torch.device("cpu")


class DispatchMode(TorchDispatchMode):
    """One that nobody compiles: what torch would import to keep it so takes seconds."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


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
