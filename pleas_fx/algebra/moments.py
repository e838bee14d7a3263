"""Streamed first and second moments; sums add up across batches and processes."""

from __future__ import annotations

from dataclasses import dataclass

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
    """Add rowsᵀ rows to a symmetric float64 matrix (…, k, k), in place.

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


@dataclass(slots=True)
class Moments:
    """Count, sum and second moment of rows, relative to a shift that keeps float32 accurate."""

    count: int
    total: Tensor  # (n,) float64
    square: Tensor  # (n, n) float64
    shift: Tensor | None = None  # (n,): mean of the first rows; None before there are any

    @classmethod
    def zeros(cls, size: int, device: torch.device | str = "cpu") -> Moments:
        """Empty sums of ``size`` variables."""
        total = torch.zeros(size, dtype=torch.float64, device=device)
        return cls(0, total, torch.zeros(size, size, dtype=torch.float64, device=device))

    def add(self, rows: Tensor) -> None:
        """Add rows (r, n): products in the rows' precision, sums in float64."""
        if len(rows) == 0:
            return
        rows = at_least_float32(rows)
        if self.shift is None:
            self.shift = rows.mean(0, dtype=torch.float64).to(rows.dtype)
        for start in range(0, len(rows), CHUNK):
            centred = rows[start : start + CHUNK] - self.shift
            self.total += centred.sum(0, dtype=torch.float64)
            add_square(self.square, centred)
        self.count += len(rows)

    def merge(self, other: Moments) -> None:
        """Add the sums of another accumulator (another batch, another process)."""
        if other.count == 0 or other.shift is None:
            return
        if self.shift is None:
            self.shift = other.shift
        delta = other.shift.double() - self.shift.double()
        cross = torch.outer(other.total, delta)
        self.square += other.square + cross + cross.T + other.count * torch.outer(delta, delta)
        self.total += other.total + other.count * delta
        self.count += other.count

    def __add__(self, other: Moments) -> Moments:
        """The sums over both sets of rows."""
        result = Moments(self.count, self.total.clone(), self.square.clone(), self.shift)
        result.merge(other)
        return result

    @property
    def mean(self) -> Tensor:
        """(n,) float64; zeros without rows."""
        base = self.total / max(self.count, 1)
        return base if self.shift is None else base + self.shift.double()

    @property
    def variance(self) -> Tensor:
        """(n,) float64: the diagonal of :attr:`covariance`."""
        base = self.total / max(self.count, 1)
        return self.square.diagonal() / max(self.count, 1) - base.square()

    def covariances(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Entries of :attr:`covariance` at broadcast indices."""
        count = max(self.count, 1)
        return (
            self.square[rows, columns] / count - self.total[rows] * self.total[columns] / count**2
        )

    def add_covariance(self, matrix: Tensor, factor: float) -> None:
        """Add ``factor`` times :attr:`covariance` to a matrix, without a matrix in between."""
        count = max(self.count, 1)
        matrix.add_(self.square, alpha=factor / count)
        matrix.addr_(self.total, self.total, alpha=-factor / count**2)

    def inner(self, weighting: Tensor, part: slice) -> float:
        """The sum over (k, k) entries of a weighting times the covariances of a part."""
        count, base = max(self.count, 1), self.total[part] / max(self.count, 1)
        raw = torch.dot(weighting.reshape(-1), self.square[part, part].reshape(-1))
        return float(raw / count - base @ weighting @ base)

    @property
    def covariance(self) -> Tensor:
        """(n, n) float64, symmetric, divided by the number of rows."""
        base = self.total / max(self.count, 1)
        result = self.square / max(self.count, 1) - torch.outer(base, base)
        return (result + result.T) / 2

    @property
    def second(self) -> Tensor:
        """(n, n) float64: mean of x xᵀ, not centred."""
        return self.covariance + torch.outer(self.mean, self.mean)

    def correlation(self, eps: float = 1e-12) -> Tensor:
        """(n, n) float64; channels without variance correlate with nothing."""
        return correlation(self.covariance, eps)


def at_least_float32(values: Tensor) -> Tensor:
    """The same values in a precision that products can be summed in."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def is_finite(values: Tensor) -> bool:
    """Whether nothing is NaN or Inf; a sum says so in one pass, unless it overflows."""
    return bool(torch.isfinite(values.sum()) or torch.isfinite(values).all())


def correlation(covariance: Tensor, eps: float = 1e-12) -> Tensor:
    """Pearson correlations of a covariance (n, n).

    A variance below ``eps`` times the largest one counts as none: its correlations are zero.
    """
    variance = covariance.diagonal().clamp_min(0)
    if not len(variance):
        return covariance
    floor = eps * variance.max().clamp_min(1e-300)
    inverse = torch.where(variance > floor, variance.clamp_min(1e-300).rsqrt(), 0.0)
    return covariance * inverse[:, None] * inverse[None, :]


def cross_correlation(moments: Moments, rows: slice, columns: slice, eps: float = 1e-12) -> Tensor:
    """(rows, columns): a block of :func:`correlation`, without the rest."""
    covariance, variance, _ = _block(moments, rows, columns)
    floor = eps * variance.max().clamp_min(1e-300)
    inverse = torch.where(variance > floor, variance.clamp_min(1e-300).rsqrt(), 0.0)
    return covariance * inverse[rows, None] * inverse[columns]


def concordance(moments: Moments, rows: slice, columns: slice) -> Tensor:
    """(rows, columns): Lin's concordance, 1 only between equal variables (Lin, 1989).

    2 cov / (var + var + (mean - mean)²); where neither varies, 1 for equal means, else 0.
    """
    covariance, variance, mean = _block(moments, rows, columns)
    total = variance[rows, None] + variance[columns] + (mean[rows, None] - mean[columns]).square()
    return torch.where(total > 0, 2 * covariance / total.clamp_min(1e-300), 1.0)


def _block(moments: Moments, rows: slice, columns: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Covariances of a block; variances and means of everything."""
    n = max(moments.count, 1)
    base = moments.total / n
    variance = moments.variance.clamp_min(0)
    covariance = moments.square[rows, columns] / n - torch.outer(base[rows], base[columns])
    return covariance, variance, moments.mean
