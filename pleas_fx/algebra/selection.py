"""Choose which channels to keep: greedy column subset selection by pivoted block Cholesky.

Every source s has target features x_s (n of them) and a weighting Q_s: what its consumers read.
A slot is either single (one channel, readable by its own source) or merged (the mean of matched
channels, readable by all). What a set of slots leaves is the variance of x_s, weighted by Q_s,
that the readable slots can't reconstruct linearly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pleas_fx.ir import FloatArray, IntArray

MERGED = -1
DEAD = 1e-9  # relative variance below which a candidate adds nothing


@dataclass(frozen=True, slots=True)
class Path:
    """Units in the order in which they were chosen; any prefix is a selection."""

    kind: IntArray  # source of a single unit, MERGED for a merged one
    unit: IntArray
    error: FloatArray  # (len + 1,): relative error of every prefix, mean over sources

    def __len__(self) -> int:
        return len(self.kind)


@dataclass(frozen=True, slots=True)
class Problem:
    """``covariance`` (N·n, N·n) of all sources' channels, already in matched order.

    ``weighting[s]`` (n, n) is Q_s; ``unit`` channels in a row form one unit (a block).
    """

    covariance: Tensor
    weighting: Sequence[Tensor]
    unit: int = 1

    @property
    def sources(self) -> int:
        return len(self.weighting)

    @property
    def size(self) -> int:
        return int(self.weighting[0].shape[0])


class _Residual:
    """What the chosen slots leave of one source: P over its channels and the merged ones."""

    def __init__(self, problem: Problem, source: int) -> None:
        n, count = problem.size, problem.sources
        own = slice(source * n, (source + 1) * n)
        merging = torch.eye(n, dtype=problem.covariance.dtype).repeat(count, 1) / count
        rows = problem.covariance[own]
        cross = rows @ merging
        merged = merging.T @ problem.covariance @ merging
        self.p = torch.cat([torch.cat([rows[:, own], cross], 1), torch.cat([cross.T, merged], 1)])
        root = _root(problem.weighting[source])
        self.h = root.T @ self.p[:n]
        self.total = max(float((root * (rows[:, own] @ root)).sum()), 1e-300)
        self.error = 1.0
        self.floor = DEAD * self.p.diagonal().clamp_min(1e-300)

    def gains(self) -> Tensor:
        """Error that each candidate column would remove by itself, relative."""
        variance = self.p.diagonal()
        gain = self.h.square().sum(0) / variance.clamp_min(1e-300)
        return torch.where(variance > self.floor, gain, 0.0) / self.total

    def take(self, columns: Tensor) -> Tensor:
        """Deflate by columns; the error each removes in turn."""
        block = self.p[columns][:, columns]
        jitter = 1e-10 * block.diagonal().mean().clamp_min(1e-300)
        factor, _ = torch.linalg.cholesky_ex(block + jitter * torch.eye(len(columns)).to(block))
        v = torch.linalg.solve_triangular(factor, self.p[columns], upper=False)
        h = torch.linalg.solve_triangular(factor, self.h[:, columns].T, upper=False)
        self.p -= v.T @ v
        self.h -= h.T @ v
        removed = h.square().sum(1) / self.total
        self.error = max(self.error - float(removed.sum()), 0.0)
        return removed


def _root(weighting: Tensor) -> Tensor:
    """A factor L with L Lᵀ = Q."""
    values, vectors = torch.linalg.eigh(weighting)
    keep = values > 1e-12 * values[-1].clamp_min(1e-300)
    return vectors[:, keep] * values[keep].sqrt()


def select(problem: Problem, *, merged_price: float, single_price: float, limit: int) -> Path:
    """Greedy by error removed per price, until ``limit`` units or nothing is left to gain.

    An infinite price excludes a kind. A channel is in at most one slot.
    """
    n, count, unit = problem.size, problem.sources, problem.unit
    units = n // unit
    residuals = [_Residual(problem, s) for s in range(count)]
    free = torch.ones(count + 1, units, dtype=torch.bool)
    free[:count] &= math.isfinite(single_price)
    free[count] &= math.isfinite(merged_price)
    kinds: list[int] = []
    chosen: list[int] = []
    errors = [1.0]
    step = max(1, units // 48)
    while len(kinds) < limit and bool(free.any()):
        scores = _scores(residuals, units, unit, merged_price, single_price)
        scores = torch.where(free, scores, -1.0)
        picks = _best(scores, min(step, limit - len(kinds)))
        if float(scores.max()) <= 1e-13:
            break
        for kind, index in picks:
            if not bool(free[kind, index]) or float(scores[kind, index]) <= 1e-13:
                continue
            _exclude(free, kind, index, count)
            kinds.append(MERGED if kind == count else kind)
            chosen.append(index)
        errors += _deflate(residuals, kinds[len(errors) - 1 :], chosen[len(errors) - 1 :], unit)
    return Path(np.array(kinds, np.int64), np.array(chosen, np.int64), np.array(errors))


def _scores(
    residuals: Sequence[_Residual], units: int, unit: int, merged_price: float, single_price: float
) -> Tensor:
    """(N + 1, units): mean error removed per price, singles by source and then merged ones."""
    gains = torch.stack([r.gains() for r in residuals]) / len(residuals)
    by_unit = gains.view(len(residuals), 2, units, unit).sum(-1)
    return torch.cat(
        [by_unit[:, 0] / single_price, by_unit[:, 1].sum(0, keepdim=True) / merged_price]
    )


def _best(scores: Tensor, number: int) -> list[tuple[int, int]]:
    """Highest scores first; merged before single where equal, then the lower index."""
    flat = scores.flip(0).reshape(-1)
    order = torch.sort(flat, descending=True, stable=True).indices[:number].tolist()
    width = scores.shape[1]
    return [(scores.shape[0] - 1 - i // width, i % width) for i in order]


def _exclude(free: Tensor, kind: int, index: int, count: int) -> None:
    if kind == count:
        free[:, index] = False
    else:
        free[kind, index] = False
        free[count, index] = False


def _deflate(
    residuals: Sequence[_Residual], kinds: Sequence[int], chosen: Sequence[int], unit: int
) -> list[float]:
    """Error after every newly chosen unit."""
    before = sum(r.error for r in residuals) / len(residuals)
    removed = torch.zeros(len(kinds), dtype=torch.float64)
    for s, residual in enumerate(residuals):
        mine = [k for k, kind in enumerate(kinds) if kind in (s, MERGED)]
        if not mine:
            continue
        n = residual.p.shape[0] // 2
        starts = torch.tensor([chosen[k] * unit + (n if kinds[k] == MERGED else 0) for k in mine])
        columns = (starts[:, None] + torch.arange(unit)).reshape(-1)
        share = residual.take(columns).view(-1, unit).sum(1).double()
        removed[mine] += share / len(residuals)
    return (before - removed.cumsum(0)).clamp_min(0.0).tolist()


def lower_bound(problem: Problem, kept: int) -> float:
    """No ``kept`` features of any kind can leave less (mean over sources, relative)."""
    n, bounds = problem.size, []
    for s, weighting in enumerate(problem.weighting):
        own = slice(s * n, (s + 1) * n)
        root = _root(weighting)
        values = torch.linalg.eigvalsh(root.T @ problem.covariance[own, own] @ root).clamp_min(0)
        bounds.append(float(values[: max(len(values) - kept, 0)].sum() / values.sum()))
    return float(np.mean(bounds))
