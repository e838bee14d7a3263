"""Ridge regression towards a prior, from streamed sums or in the dual, batched.

Minimises the mean over rows of ‖W z + b − t‖² plus λ‖W − W₀‖², where λ is ``ridge`` times the
mean variance of the inputs (mean square without an intercept). The bias isn't penalised.

All tensors may have leading batch dims: one problem for every convolution group or channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pleas_fx.algebra.gram import Central, ChannelGram, Gram, outer
from pleas_fx.algebra.moments import at_least_float32

__all__ = ["ChannelGram", "Gram", "Solution", "per_channel", "solve", "solve_dual", "solve_on"]

# "empty": no rows, so the prior; "truncated": too ill conditioned for Cholesky, so the prior in
# the directions that the rows don't determine (more rows or a larger ridge make it "cholesky").
Status = Literal["empty", "prior", "cholesky", "truncated"]  # "prior": it was exact already


@dataclass(frozen=True, slots=True)
class Solution:
    """The minimiser and how well it does."""

    weight: Tensor  # (…, m, k) float64
    bias: Tensor  # (…, m) float64
    unexplained: Tensor  # (…, m): mean squared residual
    variance: Tensor  # (…, m): of the target
    rows: int
    condition: float  # estimate for the damped system, the worst of a batch
    rank: int  # of the damped system, the least of a batch
    status: Status

    @property
    def residual(self) -> float:
        """Unexplained share of the targets' variance, summed over all outputs; NaN: no rows."""
        if self.rows == 0:
            return float("nan")
        total = float(self.variance.sum())
        return float(self.unexplained.sum()) / total if total > 0 else 0.0

    @property
    def residuals(self) -> Tensor:
        """(…, m): unexplained share of each output's variance; zero where it has none."""
        share = self.unexplained / self.variance.clamp_min(1e-300)
        return torch.where(self.variance > 0, share, 0.0)


@dataclass(frozen=True, slots=True)
class _Inverse:
    """(A + λ)⁻¹ B and what became of it."""

    value: Tensor
    condition: float
    rank: int
    status: Status


def solve(
    gram: Gram, prior: Tensor, prior_bias: Tensor, ridge: float, *, intercept: bool = True
) -> Solution:
    """Solve the normal equations for the difference from ``prior`` (…, m, k).

    Without an intercept the bias stays ``prior_bias`` (…, m). No rows: the prior.
    """
    prior, prior_bias = prior.double(), prior_bias.double()
    if gram.rows == 0:
        return _empty(prior, prior_bias)
    c = gram.central()
    zz, zt, tt = (c.zz, c.zt, c.tt) if intercept else _about(c, prior_bias)
    start = tt - 2 * (prior * zt.mT).sum(-1) + ((prior @ zz) * prior).sum(-1)
    if _is_exact(start, c.tt + c.t.square(), gram.eps):
        bias = c.t - (prior @ c.z.unsqueeze(-1)).squeeze(-1) if intercept else prior_bias
        return Solution(prior, bias, start.clamp_min(0), c.tt, gram.rows, 1.0, 0, "prior")
    level = zz.diagonal(dim1=-2, dim2=-1).mean(-1)
    found = _invert(zz, ridge * level, zt - zz @ prior.mT, gram.eps)
    weight = prior + found.value.mT
    bias = c.t - (weight @ c.z.unsqueeze(-1)).squeeze(-1) if intercept else prior_bias
    left = tt - 2 * (weight * zt.mT).sum(-1) + ((weight @ zz) * weight).sum(-1)
    return Solution(
        weight, bias, left.clamp_min(0), c.tt, gram.rows, found.condition, found.rank, found.status
    )


def solve_on(
    gram: Gram,
    columns: Tensor,
    outputs: Tensor,
    prior: Tensor,
    prior_bias: Tensor,
    ridge: float,
    *,
    intercept: bool = True,
) -> Solution:
    """Solve for some outputs over some inputs; ``prior`` is (outputs, columns), as the result."""
    return solve(gram.part(columns, outputs), prior, prior_bias, ridge, intercept=intercept)


def per_channel(
    sums: ChannelGram, scale: Tensor, shift: Tensor, ridge: float, *, intercept: bool = True
) -> Solution:
    """Scale and shift of every channel towards priors (c,): weight (c, 1, 1), bias (c, 1).

    λ is relative to each channel's own variance; one without variance keeps its prior scale.
    """
    prior, bias = scale.reshape(-1, 1, 1), shift.reshape(-1, 1)
    return solve(sums.gram, prior, bias, ridge, intercept=intercept)


def solve_dual(
    z: Tensor, t: Tensor, prior: Tensor, prior_bias: Tensor, ridge: float, *, intercept: bool = True
) -> Solution:
    """The same minimiser from the rows z (r, k), t (r, m), for fewer rows than unknowns."""
    rows, prior, prior_bias = len(z), prior.double(), prior_bias.double()
    if rows == 0:
        return _empty(prior, prior_bias)
    z = at_least_float32(z)
    z_mean = z.mean(0, dtype=torch.float64) * (1.0 if intercept else 0.0)
    t_mean = t.mean(0, dtype=torch.float64)
    centred = z - z_mean.to(z)
    left = t.double() - (t_mean if intercept else prior_bias) - (centred @ prior.to(z).T).double()
    if _is_exact(left.square().mean(0), t.double().square().mean(0), torch.finfo(z.dtype).eps):
        bias = t_mean - prior @ z_mean if intercept else prior_bias
        variance = t.double().var(0, unbiased=False)
        return Solution(prior, bias, left.square().mean(0), variance, rows, 1.0, 0, "prior")
    kernel = (centred @ centred.T).double() / rows
    damping = ridge * kernel.diagonal().sum() / z.shape[1]
    if intercept:  # a constant is in no column: lift it, which changes no solution
        left = left - left.mean(0)
        kernel = kernel + kernel.diagonal().mean() / rows
    found = _invert(kernel, damping, left, torch.finfo(z.dtype).eps)
    difference = (centred.T @ (found.value / rows).to(z)).double().T
    weight = prior + difference
    remaining = left - (centred @ difference.to(z).T).double()
    bias = t_mean - weight @ z_mean if intercept else prior_bias
    variance = t.double().var(0, unbiased=False)
    rank = min(max(found.rank - int(intercept), 0), z.shape[1])
    left_over = remaining.square().mean(0)
    return Solution(weight, bias, left_over, variance, rows, found.condition, rank, found.status)


def _is_exact(left: Tensor, moment: Tensor, eps: float) -> bool:
    """Whether a prior leaves nothing that sums of relative accuracy ``eps`` could tell from 0."""
    return float(left.sum()) <= 10 * eps * float(moment.sum())


def _empty(prior: Tensor, prior_bias: Tensor) -> Solution:
    nothing = torch.zeros_like(prior_bias)
    return Solution(prior, prior_bias, nothing, nothing, 0, float("nan"), 0, "empty")


def _about(c: Central, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Second moments of z about zero and of t about a given bias."""
    offset = c.t - bias
    return c.zz + outer(c.z, c.z), c.zt + outer(c.z, offset), c.tt + offset.square()


def _invert(matrix: Tensor, damping: Tensor, right: Tensor, eps: float) -> _Inverse:
    """(matrix (…, k, k) + damping (…))⁻¹ right; ``eps``: relative accuracy of the matrix.

    The share of a column's variance that the columns before it leave (the squared pivot over the
    diagonal) doesn't depend on scales; below ``4 eps`` it is rounding, and Cholesky's result is
    replaced by a truncated eigendecomposition.
    """
    size = matrix.shape[-1]
    eye = torch.eye(size, dtype=matrix.dtype, device=matrix.device)
    # A matrix of zeros needs some positive damping to be factored; its right side is zero too.
    floor = torch.where(matrix.diagonal(dim1=-2, dim2=-1).amax(-1) > 0, 0.0, 1.0)
    damped = matrix + (damping + floor)[..., None, None] * eye
    factor, info = torch.linalg.cholesky_ex(damped)
    pivots = factor.diagonal(dim1=-2, dim2=-1).square()
    shares = pivots / damped.diagonal(dim1=-2, dim2=-1)
    tolerance = 4 * max(eps, size * torch.finfo(torch.float64).eps)
    good = (info == 0) & (shares.amin(-1) > tolerance)
    empty = bool((floor > 0).any())
    if bool(good.all()):
        condition = float((pivots.amax(-1) / pivots.amin(-1)).max())
        rank = 0 if empty else size
        return _Inverse(torch.cholesky_solve(right, factor), condition, rank, "cholesky")
    return _truncated(matrix, damping, right, tolerance)


def _truncated(matrix: Tensor, damping: Tensor, right: Tensor, tolerance: float) -> _Inverse:
    """Nothing along eigenvectors whose eigenvalue is below ``tolerance`` times the largest."""
    values, vectors = torch.linalg.eigh(matrix)
    top = values.amax(-1, keepdim=True).clamp_min(1e-300)
    keep = values > tolerance * top
    damped = (values + damping.unsqueeze(-1)).clamp_min(1e-300)
    scale = torch.where(keep, 1 / damped, 0.0)
    result = vectors @ (scale.unsqueeze(-1) * (vectors.mT @ right))
    least = torch.where(keep, damped, torch.inf).amin(-1)
    condition = float((damped.amax(-1) / least).max())
    return _Inverse(result, condition, int(keep.sum(-1).min()), "truncated")
