"""Streamed first and second moments; sums add up across batches and processes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(slots=True)
class Moments:
    """Count, sum and second moment of rows, relative to a shift that keeps float32 accurate."""

    count: int
    total: Tensor  # (n,) float64
    square: Tensor  # (n, n) float64
    shift: Tensor | None = None  # (n,)

    @classmethod
    def zeros(cls, size: int, device: torch.device | str = "cpu") -> Moments:
        """Empty sums of ``size`` variables."""
        options = {"dtype": torch.float64, "device": device}
        return cls(0, torch.zeros(size, **options), torch.zeros(size, size, **options))  # type: ignore[arg-type]

    def add(self, rows: Tensor) -> None:
        """Add rows (r, n)."""
        if self.shift is None:
            self.shift = rows.double().mean(0).to(rows.dtype)
        centred = rows - self.shift
        self.count += len(rows)
        self.total += centred.sum(0, dtype=torch.float64)
        self.square += (centred.T @ centred).double()

    def merge(self, other: Moments) -> None:
        """Add the sums of another accumulator (another batch, another process)."""
        if other.count == 0 or other.shift is None:
            return
        if self.shift is None:
            self.shift = other.shift
        delta = other.shift.double() - self.shift.double()
        moved = other.total + other.count * delta
        cross = torch.outer(other.total, delta)
        self.square += other.square + cross + cross.T + other.count * torch.outer(delta, delta)
        self.total += moved
        self.count += other.count

    @property
    def mean(self) -> Tensor:
        """(n,) float64."""
        base = self.total / max(self.count, 1)
        return base if self.shift is None else base + self.shift.double()

    @property
    def covariance(self) -> Tensor:
        """(n, n) float64."""
        mean = self.total / max(self.count, 1)
        return self.square / max(self.count, 1) - torch.outer(mean, mean)

    @property
    def correlation(self) -> Tensor:
        """(n, n) float64; channels without variance correlate with nothing."""
        return correlation(self.covariance)


def correlation(covariance: Tensor) -> Tensor:
    """Pearson correlations of a covariance; zero where a variance is zero."""
    variance = covariance.diagonal().clamp_min(0)
    floor = 1e-12 * variance.max().clamp_min(1e-300)
    inverse = torch.where(variance > floor, variance.clamp_min(1e-300).rsqrt(), 0.0)
    return covariance * inverse[:, None] * inverse[None, :]
