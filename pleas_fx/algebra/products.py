"""Products of matrices that are known to be symmetric."""

from __future__ import annotations

import torch
from torch import Tensor

PANEL = 256  # columns of one product
CHUNK = 16384  # rows of one product: bounds memory, and float32 sums stay short


def square(rows: Tensor) -> Tensor:
    """rowsᵀ rows (…, k, k) in float64, from products in the rows' precision."""
    k = rows.shape[-1]
    total = rows.new_zeros(*rows.shape[:-2], k, k, dtype=torch.float64)
    add_square(total, rows)
    return total


def add_square(total: Tensor, rows: Tensor) -> None:
    """Add rowsᵀ rows to a symmetric matrix (…, k, k), in place.

    A matrix product computes both triangles; wide ones are cut into panels, and those below the
    diagonal are mirrored (a quarter fewer FLOPs for two panels, near half for many).
    """
    k = rows.shape[-1]
    if k < 2 * PANEL:
        total += rows.mT @ rows
        return
    for start in range(0, k, PANEL):
        stop = min(start + PANEL, k)
        total[..., start:stop, start:] += rows[..., start:stop].mT @ rows[..., start:]
        total[..., stop:, start:stop] = total[..., start:stop, stop:].mT


def add_upper(matrix: Tensor, left: Tensor, right: Tensor, factor: float) -> None:
    """Add factor leftᵀ right, known to be symmetric, where rows don't exceed columns."""
    for start in range(0, len(matrix), PANEL):
        rows = slice(start, start + PANEL)
        matrix[rows, start:].addmm_(left[:, rows].T, right[:, start:], alpha=factor)
