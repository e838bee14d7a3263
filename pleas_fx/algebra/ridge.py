"""Ridge regression towards a prior, from streamed sums or in the dual, batched.

All tensors may have leading batch dims: one problem for every convolution group or channel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Solution:
    """Minimiser of ‖W z + b − t‖² + λ‖W − W₀‖² and how well it does."""

    weight: Tensor  # (…, m, k) float64
    bias: Tensor  # (…, m) float64
    explained: Tensor  # (…, m): residual variance
    variance: Tensor  # (…, m): of the target
    rows: int
    condition: float
    rank: int

    @property
    def residual(self) -> float:
        """Unexplained share of the target's variance, over all outputs."""
        total = float(self.variance.sum())
        return float(self.explained.clamp_min(0).sum()) / total if total > 0 else 0.0


@dataclass(slots=True)
class Gram:
    """Sums over rows of inputs z (…, r, k) and targets t (…, r, m)."""

    zz: Tensor
    zt: Tensor
    tt: Tensor
    z: Tensor
    t: Tensor
    rows: int

    @classmethod
    def zeros(
        cls, inputs: int, outputs: int, batch: tuple[int, ...] = (), device: str | torch.device = "cpu"
    ) -> Gram:
        """Empty sums."""

        def empty(*shape: int) -> Tensor:
            return torch.zeros(*batch, *shape, dtype=torch.float64, device=device)

        k, m = inputs, outputs
        return cls(empty(k, k), empty(k, m), empty(m), empty(k), empty(m), 0)

    def add(self, z: Tensor, t: Tensor) -> None:
        """Add rows; products in the inputs' precision, sums in float64."""
        self.zz += (z.mT @ z).double()
        self.zt += (z.mT @ t).double()
        self.tt += t.double().square().sum(-2)
        self.z += z.sum(-2, dtype=torch.float64)
        self.t += t.sum(-2, dtype=torch.float64)
        self.rows += z.shape[-2]

    def part(self, columns: Tensor, outputs: Tensor) -> Gram:
        """The sums of some inputs and some outputs (no batch dims)."""
        return Gram(
            self.zz.index_select(0, columns).index_select(1, columns),
            self.zt.index_select(0, columns).index_select(1, outputs),
            self.tt.index_select(0, outputs),
            self.z.index_select(0, columns),
            self.t.index_select(0, outputs),
            self.rows,
        )


def solve(
    gram: Gram, prior: Tensor, prior_bias: Tensor, ridge: float, *, intercept: bool = True
) -> Solution:
    """Solve the normal equations; λ is ``ridge`` times the mean diagonal of the Gram matrix.

    Without an intercept the bias stays ``prior_bias``. No rows: the prior.
    """
    prior, prior_bias = prior.double(), prior_bias.double()
    n = max(gram.rows, 1)
    zz, zt, tt, t_mean, z_mean = gram.zz / n, gram.zt / n, gram.tt / n, gram.t / n, gram.z / n
    variance = tt - t_mean.square()
    if intercept:
        zz = zz - z_mean.unsqueeze(-1) * z_mean.unsqueeze(-2)
        zt = zt - z_mean.unsqueeze(-1) * t_mean.unsqueeze(-2)
        tt = variance
    else:
        zt = zt - z_mean.unsqueeze(-1) * prior_bias.unsqueeze(-2)
        tt = tt - 2 * prior_bias * t_mean + prior_bias.square()
    difference, condition, rank = _solve(zz, zt - zz @ prior.mT, ridge)
    weight = prior + difference.mT
    bias = t_mean - (weight @ z_mean.unsqueeze(-1)).squeeze(-1) if intercept else prior_bias
    explained = tt - 2 * (weight * zt.mT).sum(-1) + ((weight @ zz) * weight).sum(-1)
    return Solution(weight, bias, explained, variance, gram.rows, condition, rank)


def _solve(zz: Tensor, right: Tensor, ridge: float) -> tuple[Tensor, float, int]:
    """(zz + λ)⁻¹ right, with a truncated eigendecomposition where Cholesky fails."""
    size = zz.shape[-1]
    eye = torch.eye(size, dtype=zz.dtype, device=zz.device)
    level = zz.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-30)[..., None, None]
    factor, info = torch.linalg.cholesky_ex(zz + ridge * level * eye)
    diagonal = factor.diagonal(dim1=-2, dim2=-1)
    condition = float((diagonal.amax(-1) / diagonal.amin(-1).clamp_min(1e-300)).square().max())
    if not bool(info.any()) and condition < 1e13:
        return torch.cholesky_solve(right, factor), condition, size
    values, vectors = torch.linalg.eigh(zz)
    keep = values > 1e-10 * values.amax(-1, keepdim=True).clamp_min(1e-300)
    scale = torch.where(keep, 1 / (values + ridge * level.squeeze(-1)).clamp_min(1e-300), 0.0)
    rank = int(keep.sum(-1).min())
    return vectors @ (scale.unsqueeze(-1) * (vectors.mT @ right)), condition, rank


def solve_dual(
    z: Tensor, t: Tensor, prior: Tensor, prior_bias: Tensor, ridge: float, *, intercept: bool = True
) -> Solution:
    """The same minimiser from the rows themselves (r, k), for fewer rows than unknowns."""
    rows = len(z)
    z_mean = z.mean(0) if intercept else torch.zeros_like(z[0])
    t_mean = t.double().mean(0)
    centred = z - z_mean
    base = t_mean if intercept else prior_bias.double()
    left = t.double() - base - (centred @ prior.to(z).T).double()
    kernel = (centred @ centred.T).double() / rows
    level = kernel.diagonal().sum() / z.shape[1]
    eye = torch.eye(rows, dtype=torch.float64, device=z.device)
    damped = kernel + (max(ridge, 1e-9) * level.clamp_min(1e-30)) * eye
    factor, info = torch.linalg.cholesky_ex(damped)
    if int(info):
        raise ArithmeticError("the kernel matrix isn't positive definite")
    alpha = torch.cholesky_solve(left, factor) / rows
    weight = prior.double() + (centred.T @ alpha.to(z)).double().T
    remaining = left - (centred @ (weight - prior.double()).to(z).T).double()
    bias = t_mean - weight @ z_mean.double() if intercept else prior_bias.double()
    diagonal = factor.diagonal()
    condition = float((diagonal.max() / diagonal.min()).square())
    variance = t.double().var(0, unbiased=False)
    return Solution(weight, bias, remaining.square().mean(0), variance, rows, condition, rows)
