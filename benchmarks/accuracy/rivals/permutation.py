"""Git Re-Basin (Ainsworth et al. 2023), with statistics recomputed as in REPAIR."""

from __future__ import annotations

from torch import nn

from benchmarks.accuracy.rivals.aligned import Request, align
from passes.recalibrate import recalibrate


def permutation(request: Request, on: str) -> nn.Module:
    """Channels matched on "activations" or "weights", averaged, BatchNorm statistics anew."""
    aligned = align(request, on)
    recalibrate(aligned.rewritten.module, aligned.data.batches)
    return aligned.rewritten.module
