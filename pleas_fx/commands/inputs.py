"""Numbers, shapes, example inputs and data from what a user typed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pleas_fx.errors import OptionError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Shape = tuple[int, ...]
USUAL_SHAPE: Shape = (1, 3, 224, 224)


def shape(text: str) -> Shape:
    """``1,3,224,224``: the shape of an example input, batch first."""
    try:
        found = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError as error:
        raise OptionError(f"input {text!r}: expected a shape such as 1,3,224,224") from error
    if len(found) < 2 or any(size < 1 for size in found):
        raise OptionError(f"input {text!r}: expected a batch and at least one size, all positive")
    return found


def numbers(text: str | None, name: str) -> tuple[float, ...] | None:
    """``0.5,0.5,0.5``: one number a channel."""
    if text is None:
        return None
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise OptionError(f"{name} {text!r}: expected numbers such as 0.485,0.456,0.406") from error
    if not all(map(math.isfinite, found)):
        raise OptionError(f"{name} {text!r}: expected finite numbers")
    return found


def example_inputs(shapes: Sequence[Shape]) -> tuple[Tensor, ...]:
    """Random inputs of these shapes, the same on every run."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(size, generator=generator) for size in shapes)


def inputs_for(model: nn.Module, shapes: Sequence[Shape]) -> tuple[Tensor, ...]:
    """Example inputs of the shapes given, or of the size that timm notes in its models."""
    if shapes:
        return example_inputs(shapes)
    config = getattr(model, "default_cfg", None)
    size = config.get("input_size") if isinstance(config, dict) else None
    return example_inputs([(1, *size) if size else USUAL_SHAPE])


def device(name: str | None) -> torch.device | None:
    """The device a name stands for, checked to be there."""
    if name is None:
        return None
    import torch

    try:
        found = torch.device(name)
        torch.zeros(1, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise OptionError(f"device {name!r} isn't available on this machine") from error
    return found
