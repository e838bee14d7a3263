"""Sums over rows of a regression's inputs and targets: all that a least-squares solve reads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from pleas_fx.algebra.moments import at_least_float32
from pleas_fx.algebra.products import CHUNK, add_square


class Central(NamedTuple):
    """Means, and second moments about them; all float64."""

    zz: Tensor  # (…, k, k)
    zt: Tensor  # (…, k, m)
    tt: Tensor  # (…, m)
    z: Tensor  # (…, k)
    t: Tensor  # (…, m)


SHIFT = 512  # rows whose mean is the shift


@dataclass(slots=True)
class Gram:
    """Sums over rows of inputs z (…, r, k) and targets t (…, r, m), taken about a shift.

    The shift is the mean of a few rows: products in float32 then lose nothing to a mean that is
    large beside the deviation. ``zz``, ``zt``, ``tt``, ``z``, ``t`` are the plain sums.
    Float32 products leave noise of about 1e-7 in directions that the rows don't determine, which
    a solve divides by its ridge: give rows in float64 where those weights matter.
    """

    square: Tensor  # (…, k, k) float64, as all of these
    cross: Tensor  # (…, k, m)
    power: Tensor  # (…, m)
    z_sum: Tensor  # (…, k)
    t_sum: Tensor  # (…, m)
    z_shift: Tensor  # (…, k)
    t_shift: Tensor  # (…, m)
    rows: int = 0
    eps: float = torch.finfo(torch.float64).eps  # of the coarsest rows that were added

    @classmethod
    def zeros(
        cls,
        inputs: int,
        outputs: int,
        batch: tuple[int, ...] = (),
        device: str | torch.device = "cpu",
    ) -> Gram:
        """Empty sums; ``batch`` holds leading dims, one problem for each."""

        def empty(*shape: int) -> Tensor:
            return torch.zeros(*batch, *shape, dtype=torch.float64, device=device)

        k, m = inputs, outputs
        return cls(empty(k, k), empty(k, m), empty(m), empty(k), empty(m), empty(k), empty(m))

    def add(self, z: Tensor, t: Tensor) -> None:
        """Add rows z (…, r, k), t (…, r, m): products in their precision, sums in float64."""
        z, t = at_least_float32(z), at_least_float32(t)
        if z.dtype != t.dtype:
            z, t = z.double(), t.double()
        if z.shape[-2] == 0:
            return
        if self.rows == 0:
            self.z_shift = z[..., :SHIFT, :].mean(-2).double()
            self.t_shift = t[..., :SHIFT, :].mean(-2).double()
        z_shift, t_shift = self.z_shift.to(z).unsqueeze(-2), self.t_shift.to(t).unsqueeze(-2)
        for start in range(0, z.shape[-2], CHUNK):
            rows = slice(start, start + CHUNK)
            self._add(z[..., rows, :] - z_shift, t[..., rows, :] - t_shift)
        self.rows += z.shape[-2]
        self.eps = max(self.eps, torch.finfo(z.dtype).eps)

    def _add(self, z: Tensor, t: Tensor) -> None:
        if z.shape[-1] == t.shape[-1] == 1:  # one scalar regression a channel: no matrix product
            self.square += (z * z).sum(-2, keepdim=True, dtype=torch.float64)
            self.cross += (z * t).sum(-2, keepdim=True, dtype=torch.float64)
        else:
            add_square(self.square, z)
            self.cross += (z.mT @ t).double()
        self.power += t.square().sum(-2, dtype=torch.float64)
        self.z_sum += z.sum(-2).double()
        self.t_sum += t.sum(-2).double()

    def __add__(self, other: Gram) -> Gram:
        """The sums over both sets of rows."""
        if self.rows == 0 or other.rows == 0:
            return (self if other.rows == 0 else other).copy()
        result, n = self.copy(), other.rows
        dz, dt = other.z_shift - self.z_shift, other.t_shift - self.t_shift
        moved = other.z_sum + n * dz
        result.square += other.square + outer(other.z_sum, dz) + outer(dz, moved)
        result.cross += other.cross + outer(other.z_sum, dt) + outer(dz, other.t_sum + n * dt)
        result.power += other.power + 2 * other.t_sum * dt + n * dt.square()
        result.z_sum += moved
        result.t_sum += other.t_sum + n * dt
        result.rows += n
        result.eps = max(self.eps, other.eps)
        return result

    def copy(self) -> Gram:
        """The same sums in memory of their own."""
        return replace(
            self,
            square=self.square.clone(),
            cross=self.cross.clone(),
            power=self.power.clone(),
            z_sum=self.z_sum.clone(),
            t_sum=self.t_sum.clone(),
        )

    def part(self, columns: Tensor, outputs: Tensor) -> Gram:
        """The sums of some inputs and some outputs (no batch dims)."""
        return Gram(
            self.square.index_select(0, columns).index_select(1, columns),
            self.cross.index_select(0, columns).index_select(1, outputs),
            self.power.index_select(0, outputs),
            self.z_sum.index_select(0, columns),
            self.t_sum.index_select(0, outputs),
            self.z_shift.index_select(0, columns),
            self.t_shift.index_select(0, outputs),
            self.rows,
            self.eps,
        )

    def central(self) -> Central:
        """Means, and second moments about them."""
        n = max(self.rows, 1)
        z, t = self.z_sum / n, self.t_sum / n
        zz = (self.square / n).addcmul_(z.unsqueeze(-1), z.unsqueeze(-2), value=-1.0)
        zt = (self.cross / n).addcmul_(z.unsqueeze(-1), t.unsqueeze(-2), value=-1.0)
        tt = (self.power / n - t.square()).clamp_min(0)
        return Central(zz, zt, tt, z + self.z_shift, t + self.t_shift)

    @property
    def centre(self) -> Tensor:
        """(…, k): the mean of z."""
        return self.z_sum / max(self.rows, 1) + self.z_shift

    @property
    def z(self) -> Tensor:
        """(…, k): Σ z."""
        return self.z_sum + self.rows * self.z_shift

    @property
    def t(self) -> Tensor:
        """(…, m): Σ t."""
        return self.t_sum + self.rows * self.t_shift

    @property
    def zz(self) -> Tensor:
        """(…, k, k): Σ z zᵀ."""
        return self.square + outer(self.z_sum, self.z_shift) + outer(self.z_shift, self.z)

    @property
    def zt(self) -> Tensor:
        """(…, k, m): Σ z tᵀ."""
        return self.cross + outer(self.z_sum, self.t_shift) + outer(self.z_shift, self.t)

    @property
    def tt(self) -> Tensor:
        """(…, m): Σ t²."""
        return self.power + self.t_shift * (self.t_sum + self.t)


class ChannelGram:
    """Sums for one scalar regression a channel: rows z (r, c) and t (r, c)."""

    def __init__(self, channels: int, device: str | torch.device = "cpu") -> None:
        self.gram = Gram.zeros(1, 1, (channels,), device)

    def add(self, z: Tensor, t: Tensor) -> None:
        """Add rows (r, c) of inputs and targets."""
        self.gram.add(z.T.unsqueeze(-1), t.T.unsqueeze(-1))


def outer(a: Tensor, b: Tensor) -> Tensor:
    """(…, k), (…, m) -> (…, k, m)."""
    return a.unsqueeze(-1) * b.unsqueeze(-2)
