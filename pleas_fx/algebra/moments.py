"""Streamed first and second moments of rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import combinations

import torch
from torch import Tensor

from pleas_fx.algebra.products import CHUNK, PANEL, add_square
from pleas_fx.algebra.weighting import Weighting

FEW = 0.25  # rows a variable


class RowSums(ABC):
    """Count and sum of rows, relative to a shift that keeps float32 accurate.

    Which sums of products are kept is the subclass's. Rows wait until they are many, wide sums of
    products cost more to add to than their rows; few rows of many variables stay rows (``FEW``).
    """

    __slots__ = ("_rows", "count", "dtype", "shift", "total")

    def __init__(
        self, count: int, total: Tensor, shift: Tensor | None, dtype: torch.dtype = torch.float64
    ) -> None:
        """``total`` (n,), float64, relative to ``shift`` (n,); ``dtype`` of sums of products."""
        self.count, self.total, self.shift, self.dtype = count, total, shift, dtype
        self._rows: list[Tensor] = []  # centred

    def add(self, rows: Tensor) -> None:
        """Add rows (r, n): products in the rows' precision."""
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
    def mean(self) -> Tensor:
        """(n,) float64; zeros without rows."""
        base = self.total / max(self.count, 1)
        return base if self.shift is None else base + self.shift.double()

    @property
    def variance(self) -> Tensor:
        """(n,) float64: the covariance of every variable with itself."""
        base = self.total / max(self.count, 1)
        few = self._few()
        raw = self._squares() if few is None else few.square().sum(0, dtype=torch.float64)
        return raw / max(self.count, 1) - base.square()

    def products(self, rows: slice, columns: slice) -> Tensor:
        """A block of the sums of products (float64), without the rest where rows are few."""
        few = self._few()
        if few is None:
            return self._block(rows, columns).double()
        return (few[:, rows].mT @ few[:, columns]).double()

    def covariances(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Covariances at broadcast indices (float64)."""
        count, few = max(self.count, 1), self._few()
        raw = self._entries(rows, columns) if few is None else _paired(few, rows, columns)
        return raw / count - self.total[rows] * self.total[columns] / count**2

    @abstractmethod
    def _sum_up(self, rows: Tensor) -> None:
        """Add products of rows."""

    @property
    @abstractmethod
    def _begun(self) -> bool:
        """Whether there are sums of products, beside the rows that wait."""

    @abstractmethod
    def _squares(self) -> Tensor:
        """(n,) float64: sums of squares, once no rows wait."""

    @abstractmethod
    def _block(self, rows: slice, columns: slice) -> Tensor:
        """Sums of products, once no rows wait."""

    @abstractmethod
    def _entries(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Sums of products at broadcast indices, once no rows wait."""

    @property
    def _waiting(self) -> int:
        return sum(len(rows) for rows in self._rows)

    def _settle(self) -> None:
        """Nothing waits any more."""
        if self._rows:
            waiting = torch.cat(self._rows)
            for start in range(0, len(waiting), CHUNK):
                self._sum_up(waiting[start : start + CHUNK])
            self._rows.clear()

    def _few(self) -> Tensor | None:
        """All rows, where they are few; else none, and no rows wait."""
        if self._begun or self._waiting > FEW * len(self.total):
            self._settle()
            return None
        if len(self._rows) != 1:
            n = len(self.total)
            self._rows = [torch.cat(self._rows) if self._rows else self.total.new_zeros(0, n)]
        return self._rows[0]


class Moments(RowSums):
    """All second moments of rows."""

    __slots__ = ("_square",)

    def __init__(
        self,
        count: int,
        total: Tensor,
        square: Tensor | None,
        shift: Tensor | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        """``total`` (n,) and ``square`` (n, n), relative to ``shift`` (n,)."""
        super().__init__(count, total, shift, dtype)
        self._square = square

    @classmethod
    def zeros(
        cls, size: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float64
    ) -> Moments:
        """Empty sums of ``size`` variables."""
        return cls(0, torch.zeros(size, dtype=torch.float64, device=device), None, dtype=dtype)

    @property
    def square(self) -> Tensor:
        """(n, n): the sum of products, relative to the shift."""
        self._settle()
        return self._sums

    @property
    def _sums(self) -> Tensor:
        if self._square is None:
            n = len(self.total)
            self._square = self.total.new_zeros(n, n, dtype=self.dtype)
        return self._square

    def _sum_up(self, rows: Tensor) -> None:
        add_square(self._sums, rows)

    @property
    def _begun(self) -> bool:
        return self._square is not None

    def _squares(self) -> Tensor:
        return self.square.diagonal().double()

    def _block(self, rows: slice, columns: slice) -> Tensor:
        return self.square[rows, columns]

    def _entries(self, rows: Tensor, columns: Tensor) -> Tensor:
        return self.square[rows, columns].double()

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
        result = Moments(
            self.count, self.total.clone(), self.square.clone(), self.shift, self.dtype
        )
        result.merge(other)
        return result

    def add_covariance(self, matrix: Tensor, factor: float) -> None:
        """Add ``factor`` ≥ 0 times :attr:`covariance` to a symmetric matrix, in place."""
        count, few = max(self.count, 1), self._few()
        if few is None:
            matrix.add_(self.square, alpha=factor / count)
        else:
            add_square(matrix, few * (factor / count) ** 0.5)
        total = self.total.to(matrix)
        matrix.addr_(total, total, alpha=-factor / count**2)

    def inner(self, weighting: Weighting, part: slice) -> float:
        """tr(Q Σ) with Σ the covariance of a part."""
        count, few = max(self.count, 1), self._few()
        mean = self.total[None, part] / count
        raw = (
            weighting.power(self.square[part, part])
            if few is None
            else weighting.read(few[:, part])
        )
        return raw / count - weighting.read(mean)

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


class Between(RowSums):
    """Second moments between variables of different parts (sources), and of each with itself.

    A half of the work of :class:`Moments` for two parts, and a quarter of its memory.
    """

    __slots__ = ("_between", "_own", "parts")

    def __init__(self, total: Tensor, parts: int, dtype: torch.dtype = torch.float64) -> None:
        """``total``: zeros, a float64 vector of ``parts`` equally long parts."""
        super().__init__(0, total, None, dtype)
        self.parts = parts
        self._own = torch.zeros_like(total)
        self._between: dict[tuple[int, int], Tensor] = {}

    @classmethod
    def zeros(
        cls,
        size: int,
        parts: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float64,
    ) -> Between:
        """Empty sums of ``size`` variables in equally long parts."""
        return cls(torch.zeros(size, dtype=torch.float64, device=device), parts, dtype)

    @property
    def _size(self) -> int:
        return len(self.total) // self.parts

    def _sum_up(self, rows: Tensor) -> None:
        if not self._between:
            empty = (self._size, self._size)
            self._between = {
                pair: self.total.new_zeros(empty, dtype=self.dtype) for pair in self._pairs()
            }
        self._own += rows.square().sum(0, dtype=torch.float64)
        split = rows.split(self._size, 1)
        for (s, t), total in self._between.items():
            total += split[s].mT @ split[t]

    def _pairs(self) -> Iterator[tuple[int, int]]:
        return combinations(range(self.parts), 2)

    @property
    def _begun(self) -> bool:
        return bool(self._between)

    def _squares(self) -> Tensor:
        return self._own

    def _block(self, rows: slice, columns: slice) -> Tensor:
        (s, own), (t, other) = self._place(rows), self._place(columns)
        return self._between[s, t][own, other]

    def _place(self, part: slice) -> tuple[int, slice]:
        s = part.start // self._size
        start = s * self._size
        return s, slice(part.start - start, part.stop - start)

    def _entries(self, rows: Tensor, columns: Tensor) -> Tensor:
        n = self._size
        s, t = int(rows[0]) // n, int(columns[0]) // n
        return self._between[s, t][rows - s * n, columns - t * n].double()


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
