"""Run networks with attention and recurrent layers written out as matrix products."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def explicit_operators() -> Iterator[None]:
    """Attention as matrix products instead of fused kernels: those can be followed and counted."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def steps_of(*layers: nn.Module) -> Iterator[bool]:
    """The same of recurrent layers, which then run step by step; whether there are any."""
    found = any(isinstance(layer, nn.RNNBase) for layer in layers)
    fused: Any = torch.backends.mkldnn
    before = fused.enabled
    fused.enabled = before and not found
    try:
        yield found
    finally:
        fused.enabled = before
