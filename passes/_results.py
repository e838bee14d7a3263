"""What a model returns, as tensors: to compare it with what its graph does."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def called(model: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    """The result, without gradients, on copies of the inputs."""
    with torch.no_grad():
        return model(*(t.detach().clone() for t in inputs))


def tensors(result: Any) -> list[Tensor]:
    """In order, also those of dataclasses, which torch doesn't enter."""
    found: list[Tensor] = []
    for leaf in tree_leaves(result):
        if is_dataclass(leaf) and not isinstance(leaf, type):
            found += tensors([getattr(leaf, field.name) for field in fields(leaf)])
        elif isinstance(leaf, Tensor):
            found.append(leaf)
    return found
