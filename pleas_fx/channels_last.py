"""Images with the channels of a pixel side by side: the order that processors convolve faster.

Gathering the rows of a layer then copies runs of channels in place of single numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pleas_fx.ir import Program

Batch = tuple[Tensor, ...]
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
SAME = 1e-4  # relative; kernels of another order add up in another order


def arranged(programs: Sequence[Program], batches: Sequence[Batch]) -> Sequence[Batch]:
    """The batches in the faster order, where every program computes the same with it.

    Code that reads strides (``view`` inside of a leaf module, ``as_strided``) may not.
    """
    if not batches or not any(map(_gains, batches[0])):
        return batches
    one = tuple(t[:1] for t in batches[0])
    same = all(_agree(program, one, _reordered(one)) for program in programs)
    return ChannelsLast(batches) if same else batches


@dataclass(frozen=True, slots=True)
class ChannelsLast(Sequence[Batch]):
    """Batches that are reordered when they are asked for; the given ones stay as they are."""

    given: Sequence[Batch]

    def __len__(self) -> int:
        return len(self.given)

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Batch]: ...
    def __getitem__(self, index: int | slice) -> Batch | Sequence[Batch]:
        if isinstance(index, slice):
            return ChannelsLast(self.given[index])
        return _reordered(self.given[index])


def _gains(value: Tensor) -> bool:
    """Images and volumes for which the processor's library has kernels of both orders."""
    return value.dim() in FORMATS and value.dtype == torch.float32 and value.device.type == "cpu"


def _reordered(batch: Batch) -> Batch:
    return tuple(t.contiguous(memory_format=FORMATS[t.dim()]) if _gains(t) else t for t in batch)


def _agree(program: Program, one: Batch, other: Batch) -> bool:
    with torch.inference_mode():
        wanted = program.module(*one)
        try:
            found = program.module(*other)
        except RuntimeError:
            return False
    pairs = zip(tree_leaves(found), tree_leaves(wanted), strict=True)
    return all(_close(a, b) for a, b in pairs if isinstance(a, Tensor))


def _close(found: Tensor, wanted: Tensor) -> bool:
    if not wanted.is_floating_point():
        return found.equal(wanted)
    return bool((found - wanted).norm() <= SAME * wanted.norm())
