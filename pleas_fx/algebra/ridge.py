"""Ridge regression towards a prior, from streamed sums or in the dual, batched.

Minimises the mean over rows of ‖W z + b − t‖² plus λ‖W − W₀‖², where λ is ``ridge`` times the
mean variance of the inputs (mean square without an intercept). The bias isn't penalised.

All tensors may have leading batch dims: one problem for every convolution group or channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pleas_fx.algebra.gram import Central, ChannelGram, Gram, outer
from pleas_fx.algebra.moments import at_least_float32
from pleas_fx.algebra.products import square

__all__ = [
    "ChannelGram",
    "Gram",
    "Solution",
    "System",
    "per_channel",
    "solve",
    "solve_dual",
]

# "empty": no rows, so the prior; "truncated": too ill conditioned for Cholesky, so the prior in
# the directions that the rows don't determine (more rows or a larger ridge make it "cholesky").
# "prior": it was exact already, or no change would gain anything.
Status = Literal["empty", "prior", "cholesky", "truncated"]


@dataclass(frozen=True, slots=True)
class Solution:
    """The minimiser and how well it does."""

    weight: Tensor  # (…, m, k) float64; from rows in the rows' type
    bias: Tensor  # (…, m) float64
    unexplained: Tensor  # (…, m): mean squared residual
    variance: Tensor  # (…, m): of the target
    output_mean: Tensor  # (…, m): of W z, without the bias
    output_variance: Tensor  # (…, m)
    rows: int
    condition: float  # estimate for the damped system, the worst of a batch
    rank: int  # of the damped system, the least of a batch
    status: Status
    system: System | None = None  # for who goes on from here

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


class Found(NamedTuple):
    """How a system was solved: the last fields of a solution."""

    condition: float
    rank: int
    status: Status


_KEPT = Found(1.0, 0, "prior")


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
    seen = prior @ zz
    power = (seen * prior).sum(-1)
    start = tt - 2 * (prior * zt.mT).sum(-1) + power
    moment = c.tt + c.t.square()
    found, difference, left, kept = _KEPT, torch.zeros_like(prior), start, None
    if not _is_exact(start, moment, gram.eps):
        level = zz.diagonal(dim1=-2, dim2=-1).mean(-1)
        missing = zt.mT - seen
        damping = ridge * level
        system = System(zz, damping, gram.eps)
        step = system.solve(missing.mT)
        change = _product(system.found, zz, damping, step, missing)
        gain = 2 * (step * missing).sum(-1) - (step * change).sum(-1)
        if not _is_exact(gain, moment, gram.eps):  # else it would fit rounding
            found, difference, left, kept = system.found, step, start - gain, system
            power = power + (step * (2 * seen + change)).sum(-1)
    weight = prior + difference
    mean = (weight @ c.z.unsqueeze(-1)).squeeze(-1)
    bias = _shift(c.t - mean, prior_bias, moment, gram.eps) if intercept else prior_bias
    spread = power if intercept else power - mean.square()
    left, spread = left.clamp_min(0), spread.clamp_min(0)
    return Solution(weight, bias, left, c.tt, mean, spread, gram.rows, *found, kept)


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
    """The same minimiser from the rows z (r, k), t (r, m), for fewer rows than unknowns.

    Weights as large as that (25,088 x 4,096 in VGG) aren't copied more often than needed.
    """
    rows, prior_bias = len(z), prior_bias.double()
    if rows == 0:
        return _empty(prior.double(), prior_bias)
    z, t = at_least_float32(z), t.double()
    prior = prior.to(z)
    z_mean = z.mean(0, dtype=torch.float64) * (1.0 if intercept else 0.0)
    t_mean = t.mean(0)
    centred = z - z_mean.to(z)
    left = t - (t_mean if intercept else prior_bias) - (centred @ prior.T).double()
    moment, eps = t.square().mean(0), torch.finfo(z.dtype).eps
    if _is_exact(left.square().mean(0), moment, eps):
        found, weight, left_over = _KEPT, prior, left.square().mean(0)
    else:
        found, difference, left_over = _from_rows(centred, left, ridge, intercept)
        weight = difference.add_(prior)
    made = (z @ weight.T).double()
    offset = made.mean(0)
    bias = _shift(t_mean - offset, prior_bias, moment, eps) if intercept else prior_bias
    spread = made.var(0, unbiased=False)
    deviation = t.var(0, unbiased=False)
    return Solution(weight, bias, left_over, deviation, offset, spread, rows, *found)


def _from_rows(
    centred: Tensor, left: Tensor, ridge: float, intercept: bool
) -> tuple[Found, Tensor, Tensor]:
    """Difference to the prior (m, k) and what it leaves of ``left`` (m,), by the rows' kernel."""
    rows, unknowns = centred.shape
    kernel = square(centred.T).div_(rows)
    damping = ridge * kernel.diagonal().sum() / unknowns
    if intercept:  # a constant is in no column: lift it, which changes no solution
        left = left - left.mean(0)
        kernel = kernel + kernel.diagonal().mean() / rows
    system = System(kernel, damping, torch.finfo(centred.dtype).eps)
    found, solved = system.found, system.solve(left)
    difference = (solved / rows).to(centred) @ centred
    remaining = left - (centred @ difference.T).double()
    rank = min(max(found.rank - int(intercept), 0), unknowns)
    return found._replace(rank=rank), difference, remaining.square().mean(0)


def _is_exact(left: Tensor, moment: Tensor, eps: float) -> bool:
    """Whether a prior leaves nothing that sums of relative accuracy ``eps`` could tell from 0."""
    return float(left.sum()) <= 10 * eps * float(moment.sum())


def _shift(bias: Tensor, prior: Tensor, moment: Tensor, eps: float) -> Tensor:
    """The prior where a bias differs by rounding only: normalised, 1e-7 for 0 is a direction."""
    return torch.where((bias - prior).abs() <= 10 * eps * moment.sqrt(), prior, bias)


def _empty(prior: Tensor, prior_bias: Tensor) -> Solution:
    nothing = torch.zeros_like(prior_bias)
    empty = Found(float("nan"), 0, "empty")
    return Solution(prior, prior_bias, nothing, nothing, nothing, nothing, 0, *empty)


def _about(c: Central, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Second moments of z about zero and of t about a given bias."""
    offset = c.t - bias
    return c.zz + outer(c.z, c.z), c.zt + outer(c.z, offset), c.tt + offset.square()


class System:
    """(matrix (…, k, k) + damping (…)), to be solved for several right sides.

    ``eps``: relative accuracy of the matrix. The share of a column's variance that the columns
    before it leave (the squared pivot over the diagonal) doesn't depend on scales; below ``4 eps``
    it is rounding, and Cholesky's factor is replaced by a truncated eigendecomposition.
    """

    __slots__ = ("_left", "_right", "damping", "found")
    damping: Tensor
    found: Found
    _left: Tensor  # Cholesky's factor; or, with ``_right``, the inverse as a product
    _right: Tensor | None

    def __init__(self, matrix: Tensor, damping: Tensor, eps: float) -> None:
        self.damping, size = damping, matrix.shape[-1]
        # A matrix of zeros needs some positive damping to be factored; its right side is zero too.
        floor = torch.where(matrix.diagonal(dim1=-2, dim2=-1).amax(-1) > 0, 0.0, 1.0)
        diagonal = matrix.diagonal(dim1=-2, dim2=-1)
        own = diagonal.clone()
        diagonal.add_((damping + floor).unsqueeze(-1))  # in place: a copy of a wide one is slow
        factor, info = torch.linalg.cholesky_ex(matrix)
        pivots = factor.diagonal(dim1=-2, dim2=-1).square()
        shares = pivots / diagonal
        diagonal.copy_(own)
        tolerance = 4 * max(eps, size * torch.finfo(torch.float64).eps)
        if bool(((info == 0) & (shares.amin(-1) > tolerance)).all()):
            condition = float((pivots.amax(-1) / pivots.amin(-1)).max())
            rank = 0 if bool((floor > 0).any()) else size
            self.found, self._left, self._right = Found(condition, rank, "cholesky"), factor, None
        else:
            self.found, self._left, self._right = _truncated(matrix, damping, tolerance)

    def solve(self, right: Tensor) -> Tensor:
        """The inverse times ``right`` (…, k, m), transposed: (…, m, k)."""
        if self._right is not None:
            solved = self._left @ (self._right @ right)
        else:
            half = torch.linalg.solve_triangular(self._left, right, upper=False)
            solved = torch.linalg.solve_triangular(self._left.mT, half, upper=True)
        return solved.mT


def _product(
    found: Found, matrix: Tensor, damping: Tensor, difference: Tensor, missing: Tensor
) -> Tensor:
    """``difference @ matrix``: what a solution that leaves nothing says about itself."""
    if found.status == "cholesky":
        return missing - damping.unsqueeze(-1).unsqueeze(-1) * difference
    return difference @ matrix


def _truncated(matrix: Tensor, damping: Tensor, tolerance: float) -> tuple[Found, Tensor, Tensor]:
    """The inverse as a product of two: nothing along eigenvectors whose eigenvalue is below
    ``tolerance`` times the largest.
    """
    values, vectors = torch.linalg.eigh(matrix)
    top = values.amax(-1, keepdim=True).clamp_min(1e-300)
    keep = values > tolerance * top
    damped = (values + damping.unsqueeze(-1)).clamp_min(1e-300)
    scale = torch.where(keep, 1 / damped, 0.0)
    least = torch.where(keep, damped, torch.inf).amin(-1)
    condition = float((damped.amax(-1) / least).max())
    found = Found(condition, int(keep.sum(-1).min()), "truncated")
    return found, vectors * scale.unsqueeze(-2), vectors.mT
