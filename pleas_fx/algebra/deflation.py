"""What chosen columns leave of one source: a pivoted Cholesky with delayed updates."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

DEAD = 1e-9  # share of its variance below which a candidate adds nothing
PENDING = 32  # columns taken between two updates of the matrices
CROWDED = 0.8  # matrices are cut down when fewer of their columns are still candidates


class Residual:
    """Residual covariance P of the candidates, and M = P_x Q P_xᵀ with P_x its targets' part.

    A candidate c by itself removes M_cc / P_cc of the error. Taking it, with v = P_c / √P_cc,
    a = M_c / √P_cc and β = M_cc / P_cc, gives P − v vᵀ and M − v a'ᵀ − a' vᵀ, a' = a − β v / 2:
    both matrices only ever need their columns, so updates wait and are applied as products.
    """

    v: Tensor  # (PENDING, candidates): the updates that wait, and as many of a'
    a: Tensor

    def __init__(self, joint: Tensor, weighting: Tensor, allowed: Tensor, accuracy: float) -> None:
        """``joint`` (2n, 2n): covariance of (channels, merged channels); float64."""
        n = len(weighting)
        self.ids = allowed
        self.p = joint.index_select(0, allowed).index_select(1, allowed)
        targets = joint[:n].index_select(1, allowed)
        self.m = targets.T @ (weighting @ targets)
        total = float((weighting * joint[:n, :n]).sum())
        self.total = total if total > 0 else 1.0
        self.error = 1.0 if total > 0 else 0.0
        self.variance = self.p.diagonal().clone()
        self.weighted = self.m.diagonal().clone() * (1.0 if total > 0 else 0.0)
        self.floor = max(DEAD, 8 * accuracy) * self.variance.clamp_min(1e-300)
        self.score = joint.new_zeros(2 * n)
        self._index()

    def gains(self) -> Tensor:
        """(2n,): error that each candidate would remove by itself, relative."""
        alive = self.variance > self.floor
        gain = torch.where(alive, self.weighted / self.variance, 0.0).clamp_min_(0)
        self.score[self.ids] = gain / self.total
        return self.score

    def take(self, candidate: int) -> None:
        """Deflate by a candidate; nothing happens when the chosen ones already explain it."""
        at = int(self.place[candidate])
        if at < 0:
            return
        k = self.pending
        v, a = self.p[at], self.m[at]
        if k:
            column = self.v[:k, at], self.a[:k, at]
            v = v - column[0] @ self.v[:k]
            a = a - column[1] @ self.v[:k] - column[0] @ self.a[:k]
        pivot = float(v[at])
        if pivot <= float(self.floor[at]):
            self.variance[at] = 0.0
            return
        v, a = v / pivot**0.5, a / pivot**0.5
        removed = max(float(a[at]) / pivot**0.5, 0.0)
        self.variance -= v.square()
        self.weighted -= v * (2 * a - removed * v)
        self.variance[at] = 0.0
        self.v[k], self.a[k] = v, a - removed / 2 * v
        self.pending += 1
        self.error = max(self.error - removed / self.total, 0.0)
        if self.pending == PENDING:
            self._flush()

    def drop(self, candidates: range) -> None:
        """Take candidates off the list without using them."""
        at = self.place[candidates.start : candidates.stop]
        at = at[at >= 0]
        if len(at):
            self.variance[torch.from_numpy(at).to(self.variance.device)] = 0.0

    def _flush(self) -> None:
        """Apply the pending updates, to the columns that can still be chosen."""
        alive = (self.variance > self.floor).nonzero().view(-1)
        if len(alive) < CROWDED * len(self.ids):
            self.score.zero_()
            self.p, self.m = (x.index_select(0, alive)[:, alive] for x in (self.p, self.m))
            self.v, self.a = self.v[:, alive], self.a[:, alive]
            self.variance, self.weighted = self.variance[alive], self.weighted[alive]
            self.floor, self.ids = self.floor[alive], self.ids[alive]
        both, swapped = torch.cat([self.v, self.a]), torch.cat([self.a, self.v])
        self.p.addmm_(self.v.T, self.v, alpha=-1)
        self.m.addmm_(both.T, swapped, alpha=-1)
        self._index()

    def _index(self) -> None:
        """Empty buffers for the columns there are, and where each candidate lies."""
        self.v = self.p.new_zeros(PENDING, len(self.ids))
        self.a = torch.zeros_like(self.v)
        self.pending = 0
        self.place = np.full(len(self.score), -1, np.int64)
        self.place[self.ids.cpu().numpy()] = np.arange(len(self.ids))
