"""Streamed first and second moments; sums add up across batches and processes."""

from __future__ import annotations

import torch
from torch import Tensor

PANEL = 256  # columns of one product
FEW = 0.25  # rows a variable
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


class Moments:
    """Count, sum and second moment of rows, relative to a shift that keeps float32 accurate.

    Rows wait until they are many, a wide second moment costs more to add to than its rows; few rows
    of many variables stay rows (``FEW``).
    """

    __slots__ = ("_rows", "_square", "count", "shift", "total")

    def __init__(
        self, count: int, total: Tensor, square: Tensor | None, shift: Tensor | None = None
    ) -> None:
        """``total`` (n,) and ``square`` (n, n), float64, relative to ``shift`` (n,)."""
        self.count, self.total, self.shift = count, total, shift
        self._square = square
        self._rows: list[Tensor] = []  # centred

    @classmethod
    def zeros(cls, size: int, device: torch.device | str = "cpu") -> Moments:
        """Empty sums of ``size`` variables."""
        return cls(0, torch.zeros(size, dtype=torch.float64, device=device), None)

    def add(self, rows: Tensor) -> None:
        """Add rows (r, n): products in the rows' precision, sums in float64."""
        if len(rows) == 0:
            return
        rows = at_least_float32(rows)
        if self.shift is None:
            self.shift = rows.mean(0, dtype=torch.float64).to(rows.dtype)
        centred = rows - self.shift
        self.total += centred.sum(0, dtype=torch.float64)
        self.count += len(rows)
        self._rows.append(centred)
        if self._waiting >= len(self.total):
            self._settle()

    @property
    def _waiting(self) -> int:
        return sum(len(rows) for rows in self._rows)

    def _settle(self) -> Tensor:
        """The second moment, with all rows in it."""
        n = len(self.total)
        if self._square is None:
            self._square = self.total.new_zeros(n, n)
        if self._rows:
            waiting = torch.cat(self._rows)
            for start in range(0, len(waiting), CHUNK):
                add_square(self._square, waiting[start : start + CHUNK])
            self._rows.clear()
        return self._square

    def _few(self) -> Tensor | None:
        """All rows, where they are few; else none, and :attr:`square` is up to date."""
        if self._square is not None or self._waiting > FEW * len(self.total):
            self._settle()
            return None
        if len(self._rows) != 1:
            n = len(self.total)
            self._rows = [torch.cat(self._rows) if self._rows else self.total.new_zeros(0, n)]
        return self._rows[0]

    @property
    def square(self) -> Tensor:
        """(n, n) float64: the sum of products, relative to the shift."""
        return self._settle()

    def products(self, rows: slice, columns: slice) -> Tensor:
        """A block of :attr:`square`, without the rest where rows are few."""
        few = self._few()
        if few is None:
            return self.square[rows, columns]
        return (few[:, rows].mT @ few[:, columns]).double()

    def merge(self, other: Moments) -> None:
        """Add the sums of another accumulator (another batch, another process)."""
        if other.count == 0 or other.shift is None:
            return
        if self.shift is None:
            self.shift = other.shift
        delta = other.shift.double() - self.shift.double()
        cross = torch.outer(other.total, delta)
        square = self.square
        square += other.square + cross + cross.T + other.count * torch.outer(delta, delta)
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
        few = self._few()
        raw = self.square.diagonal() if few is None else few.square().sum(0, dtype=torch.float64)
        return raw / max(self.count, 1) - base.square()

    def covariances(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Entries of :attr:`covariance` at broadcast indices."""
        count, few = max(self.count, 1), self._few()
        raw = self.square[rows, columns] if few is None else _paired(few, rows, columns)
        return raw / count - self.total[rows] * self.total[columns] / count**2

    def add_covariance(self, matrix: Tensor, factor: float) -> None:
        """Add ``factor`` ≥ 0 times :attr:`covariance` to a symmetric matrix, in place."""
        count, few = max(self.count, 1), self._few()
        if few is None:
            matrix.add_(self.square, alpha=factor / count)
        else:
            add_square(matrix, few * (factor / count) ** 0.5)
        matrix.addr_(self.total, self.total, alpha=-factor / count**2)

    def inner(self, weighting: Tensor, part: slice) -> float:
        """The sum over (k, k) entries of a weighting times the covariances of a part."""
        count, base = max(self.count, 1), self.total[part] / max(self.count, 1)
        few = self._few()
        if few is None:
            raw = torch.dot(weighting.reshape(-1), self.square[part, part].reshape(-1))
        else:
            own = few[:, part].double()
            raw = ((own @ weighting) * own).sum()
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


def _paired(rows: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Sums over all rows of products of variables at broadcast indices."""
    left, right = torch.broadcast_tensors(left, right)
    total = torch.zeros(left.shape, dtype=torch.float64, device=rows.device)
    for part in rows.split(PANEL):
        total += (part[:, left] * part[:, right]).sum(0, dtype=torch.float64)
    return total


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
    inverse = torch.where(_varies(variance, eps), variance.clamp_min(1e-300).rsqrt(), 0.0)
    return covariance * inverse[:, None] * inverse[None, :]


def cross_correlation(moments: Moments, rows: slice, columns: slice, eps: float = 1e-12) -> Tensor:
    """(rows, columns): a block of :func:`correlation`, without the rest."""
    covariance, variance, _ = _block(moments, rows, columns)
    inverse = torch.where(_varies(variance, eps), variance.clamp_min(1e-300).rsqrt(), 0.0)
    return covariance * inverse[rows, None] * inverse[columns]


def varying(moments: Moments, eps: float = 1e-12) -> Tensor:
    """(n,): which variables have a correlation with others at all."""
    return _varies(moments.variance.clamp_min(0), eps)


def _varies(variance: Tensor, eps: float) -> Tensor:
    return variance > eps * variance.max().clamp_min(1e-300)


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
    covariance = moments.products(rows, columns) / n - torch.outer(base[rows], base[columns])
    return covariance, variance, moments.mean
