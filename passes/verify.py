"""Try the rewrite where the answer is known: with nothing merged it computes what the sources do.

Labels tell most wrong rewrites, but channels of one class look alike to them, whatever their order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from passes._lockstep import Batch
from passes.observe import planned_groups
from passes.rewrite import Mismatch, rewrite
from pleas_fx.ir import GroupId, Lane, Program, Symmetry
from pleas_fx.lanes import whole_lane
from pleas_fx.module_tree import discard

TOLERANCE = 1e-2  # relative: rounding stays far below, channels in a wrong order give about 1
ROUNDINGS = 30  # of the outputs' type, for those coarser than float32


@dataclass(frozen=True, slots=True)
class Verify:
    """Options of the pass."""

    name: str = "verify"

    def run(
        self,
        programs: Sequence[Program],
        symmetries: Sequence[Symmetry],
        outputs: Mapping[GroupId, tuple[Lane, ...]],
        inputs: Batch,
    ) -> float:
        return verify(programs, symmetries, outputs, inputs)


def verify(
    programs: Sequence[Program],
    symmetries: Sequence[Symmetry],
    outputs: Mapping[GroupId, tuple[Lane, ...]],
    inputs: Batch,
) -> float:
    """The largest relative error of an output at full width, in tolerances: above 1 is wrong.

    ``outputs``: the lanes of separate heads. 0 where the graph has no full width.
    """
    sources = len(programs)
    lanes = {
        group.id: tuple(
            whole_lane(s, int((own.layout.group == group.id).sum()), sources)
            for s, own in enumerate(symmetries)
        )
        for group in planned_groups(symmetries[0])
    }
    try:
        network = rewrite(programs, symmetries, lanes | dict(outputs), heads="separate").module
    except Mismatch:
        return 0.0
    with torch.no_grad():
        found = _tensors(network(*inputs))
        wanted = [t for program in programs for t in _tensors(program.module(*inputs))]
    discard(network)
    if len(found) != len(wanted):
        return float("inf")
    return max(map(_error, found, wanted), default=0.0)


def _tensors(result: object) -> list[Tensor]:
    return [t for t in tree_leaves(result) if isinstance(t, Tensor) and t.is_floating_point()]


def _error(found: Tensor, wanted: Tensor) -> float:
    """Relative to the largest entry; what isn't finite in a source says nothing."""
    if found.shape != wanted.shape:
        return float("inf")
    if not bool(torch.isfinite(wanted).all()) or not wanted.numel():
        return 0.0
    if not bool(torch.isfinite(found).all()):
        return float("inf")
    tolerance = max(TOLERANCE, ROUNDINGS * torch.finfo(wanted.dtype).eps)
    scale = float(wanted.abs().max()) or 1.0
    return float((found - wanted).abs().max()) / (scale * tolerance)
