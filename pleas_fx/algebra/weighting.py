"""What the consumers of some channels read of them: Q, the sum of WᵀW over their weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from pleas_fx.algebra.products import add_square, add_upper


class Weighting(ABC):
    """A symmetric matrix Q (n, n) without negative eigenvalues."""

    @property
    @abstractmethod
    def size(self) -> int:
        """n."""

    @abstractmethod
    def whole(self) -> Tensor:
        """(n, n): Q."""

    @abstractmethod
    def diagonal(self) -> Tensor:
        """(n,) float64: of Q."""

    @abstractmethod
    def power(self, covariance: Tensor) -> float:
        """tr(Q Σ): how much of channels with covariance Σ (n, n) is read."""

    @abstractmethod
    def read(self, rows: Tensor) -> float:
        """The sum of xᵀ Q x over rows x (r, n)."""

    @abstractmethod
    def add_form(self, total: Tensor, targets: Tensor) -> None:
        """Add Tᵀ Q T to the upper triangle of ``total`` (c, c); ``targets`` T is (n, c)."""

    @abstractmethod
    def times(self, factor: float) -> Weighting:
        """``factor`` ≥ 0 times Q."""

    @abstractmethod
    def at(self, order: Tensor) -> Weighting:
        """Q with its channels in another order."""

    @abstractmethod
    def to(self, dtype: torch.dtype) -> Weighting:
        """In another precision."""


@dataclass(frozen=True, slots=True)
class Matrix(Weighting):
    """Q itself."""

    matrix: Tensor

    @property
    def size(self) -> int:
        return len(self.matrix)

    def whole(self) -> Tensor:
        return self.matrix

    def diagonal(self) -> Tensor:
        return self.matrix.diagonal().double()

    def power(self, covariance: Tensor) -> float:
        return float((self.matrix * covariance.to(self.matrix)).sum(dtype=torch.float64))

    def read(self, rows: Tensor) -> float:
        own = rows.to(self.matrix)
        return float(((own @ self.matrix) * own).sum(dtype=torch.float64))

    def add_form(self, total: Tensor, targets: Tensor) -> None:
        add_upper(total, targets, self.matrix.to(targets) @ targets, 1.0)

    def times(self, factor: float) -> Matrix:
        return Matrix(self.matrix * factor)

    def at(self, order: Tensor) -> Matrix:
        return Matrix(self.matrix[order[:, None], order])

    def to(self, dtype: torch.dtype) -> Matrix:
        return Matrix(self.matrix.to(dtype))


@dataclass(frozen=True, slots=True)
class Root(Weighting):
    """L (k, n) with Q = Lᵀ L, where readers have fewer outputs than inputs: k / n of the work."""

    rows: Tensor

    @property
    def size(self) -> int:
        return int(self.rows.shape[1])

    def whole(self) -> Tensor:
        return self.rows.mT @ self.rows

    def diagonal(self) -> Tensor:
        return self.rows.square().sum(0, dtype=torch.float64)

    def power(self, covariance: Tensor) -> float:
        return float(((self.rows @ covariance.to(self.rows)) * self.rows).sum(dtype=torch.float64))

    def read(self, rows: Tensor) -> float:
        return float((rows.to(self.rows) @ self.rows.mT).square().sum(dtype=torch.float64))

    def add_form(self, total: Tensor, targets: Tensor) -> None:
        outputs = self.rows.to(targets) @ targets
        add_upper(total, outputs, outputs, 1.0)

    def times(self, factor: float) -> Root:
        return Root(self.rows * factor**0.5)

    def at(self, order: Tensor) -> Root:
        return Root(self.rows[:, order])

    def to(self, dtype: torch.dtype) -> Root:
        return Root(self.rows.to(dtype))


def matrix_of(readers: Iterable[Tensor], size: int, dtype: torch.dtype) -> Matrix:
    """From the weights (outputs, size) of all readers; the identity where there is none."""
    total, found = torch.zeros(size, size, dtype=dtype), False
    for weight in readers:
        add_square(total, weight)
        found = True
    return Matrix(total if found else torch.eye(size, dtype=dtype))


def root_of(readers: Iterable[Tensor], dtype: torch.dtype) -> Root:
    """The same from weights of at least one reader."""
    return Root(torch.cat([weight.to(dtype) for weight in readers]))


def added(one: Weighting | None, other: Weighting) -> Weighting:
    """The sum; of two roots it is a root."""
    if one is None:
        return other
    if isinstance(one, Root) and isinstance(other, Root):
        return Root(torch.cat([one.rows, other.rows]))
    return Matrix(one.whole() + other.whole())
