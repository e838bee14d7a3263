"""How alike variables are, from their streamed moments."""

from __future__ import annotations

import torch
from torch import Tensor

from pleas_fx.algebra.moments import RowSums


def correlation(covariance: Tensor, eps: float = 1e-12) -> Tensor:
    """Pearson correlations of a covariance (n, n).

    A variance below ``eps`` times the largest one counts as none: its correlations are zero.
    """
    variance = covariance.diagonal().clamp_min(0)
    if not len(variance):
        return covariance
    inverse = torch.where(_varies(variance, eps), variance.clamp_min(1e-300).rsqrt(), 0.0)
    return covariance * inverse[:, None] * inverse[None, :]


def cross_correlation(moments: RowSums, rows: slice, columns: slice) -> Tensor:
    """(rows, columns): a block of :func:`correlation`, without the rest."""
    return similarities(moments, rows, columns)[0]


def concordance(moments: RowSums, rows: slice, columns: slice) -> Tensor:
    """(rows, columns): Lin's concordance, 1 only between equal variables (Lin, 1989).

    2 cov / (var + var + (mean - mean)²); where neither varies, 1 for equal means, else 0.
    """
    return similarities(moments, rows, columns)[1]


def similarities(moments: RowSums, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
    """(rows, columns) each: :func:`cross_correlation` and :func:`concordance`, read off at once."""
    count = max(moments.count, 1)
    base, mean = moments.total / count, moments.mean
    variance, inverse = _spread(moments)
    covariance = moments.products(rows, columns) / count
    covariance -= torch.outer(base[rows], base[columns])
    correlated = (covariance * inverse[rows, None]).mul_(inverse[columns])
    total = variance[rows, None] + variance[columns]
    total += (mean[rows, None] - mean[columns]).square_()
    known = total > 0
    concordant = covariance.mul_(2).div_(total.clamp_min_(1e-300))
    return correlated, torch.where(known, concordant, 1.0)


def correlations(moments: RowSums, rows: Tensor, columns: Tensor) -> Tensor:
    """Entries of :func:`cross_correlation` at equally many rows and columns."""
    inverse = _spread(moments)[1]
    return moments.covariances(rows, columns) * inverse[rows] * inverse[columns]


def varying(moments: RowSums) -> Tensor:
    """(n,): which variables have a correlation with others at all."""
    return _varies(moments.variance.clamp_min(0))


def _spread(moments: RowSums) -> tuple[Tensor, Tensor]:
    """Variances, and one over their roots; zero where there is none."""
    variance = moments.variance.clamp_min(0)
    return variance, torch.where(_varies(variance), variance.clamp_min(1e-300).rsqrt(), 0.0)


def _varies(variance: Tensor, eps: float = 1e-12) -> Tensor:
    return variance > eps * variance.max().clamp_min(1e-300)
