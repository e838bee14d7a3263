"""What chosen columns leave of one source: a pivoted Cholesky with delayed updates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pleas_fx.ir import FloatArray

DEAD = 1e-9  # share of its variance below which a candidate adds nothing
PENDING = 32  # columns taken between two updates of the matrices
CROWDED = 0.8  # matrices are cut down when fewer of their columns are still candidates


@dataclass(frozen=True, slots=True)
class Start:
    """One source before anything is chosen; float64, on the CPU."""

    p: Tensor  # (candidates, candidates): their covariance
    m: Tensor  # (candidates, candidates): P_x Q P_xᵀ, with P_x their covariance with the targets
    total: float  # weighted variance of the targets
    accuracy: float  # relative, of the covariance


def start(joint: Tensor, weighting: Tensor, accuracy: float) -> Start:
    """From the covariance (2n, 2n) of (channels, merged channels) and the weighting (n, n)."""
    n = len(weighting)
    targets = joint[:n]
    total = float((weighting * joint[:n, :n]).sum())
    m = targets.T @ (weighting @ targets)
    return Start(joint.cpu(), m.cpu(), total, accuracy)


class Residual:
    """Residual covariance P of the candidates, and M = P_x Q P_xᵀ with P_x its targets' part.

    A candidate c by itself removes M_cc / P_cc of the error. Taking it, with v = P_c / √P_cc,
    a = M_c / √P_cc and β = M_cc / P_cc, gives P − v vᵀ and M − v a'ᵀ − a' vᵀ, a' = a − β v / 2:
    both matrices only ever need their columns, so updates wait and are applied as products.

    One column is little work: it is done by numpy, whose calls cost least, on the same memory.
    """

    def __init__(self, given: Start, allowed: Tensor) -> None:
        """``allowed``: the candidates among those of ``given``."""
        something = given.total > 0
        self.total = given.total if something else 1.0
        self.error = 1.0 if something else 0.0
        self.score = np.zeros(len(given.p))
        self._hold(given.p, given.m, allowed)
        self.ids = allowed.numpy()
        self.variance = given.p.diagonal()[allowed].numpy().copy()
        self.weighted = given.m.diagonal()[allowed].numpy() * (1.0 if something else 0.0)
        self.floor = max(DEAD, 8 * given.accuracy) * np.maximum(self.variance, 1e-300)
        self._index()

    def gains(self) -> FloatArray:
        """(2n,): error that each candidate would remove by itself, relative."""
        gain = np.zeros_like(self.variance)
        np.divide(self.weighted, self.variance, out=gain, where=self.variance > self.floor)
        self.score[self.ids] = np.maximum(gain, 0.0, out=gain) / self.total
        return self.score

    def take(self, candidate: int) -> None:
        """Deflate by a candidate; nothing happens when the chosen ones already explain it."""
        at = int(self.place[candidate])
        if at < 0:
            return
        k = self.pending
        v, a = self.p[at], self.m[at]
        if k:
            vs, others = self.v[:k], self.a[:k]
            by, along = vs[:, at], others[:, at]
            v = v - by @ vs
            a = a - along @ vs - by @ others
        pivot = float(v[at])
        if pivot <= self.floor[at]:
            self.variance[at] = 0.0
            return
        root = pivot**-0.5
        v, a = v * root, a * root
        removed = max(float(a[at]) * root, 0.0)
        self.variance -= v * v
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
        self.variance[at[at >= 0]] = 0.0

    def _flush(self) -> None:
        """Apply the pending updates, to the columns that can still be chosen."""
        alive = np.flatnonzero(self.variance > self.floor)
        v, a = torch.from_numpy(self.v), torch.from_numpy(self.a)
        if len(alive) < CROWDED * len(self.ids):
            self.score[:] = 0.0
            kept = torch.from_numpy(alive)
            self._hold(self._p, self._m, kept)
            v, a = v.index_select(1, kept), a.index_select(1, kept)
            self.variance, self.weighted = self.variance[alive], self.weighted[alive]
            self.floor, self.ids = self.floor[alive], self.ids[alive]
        self._p.addmm_(v.T, v, alpha=-1)
        self._m.addmm_(torch.cat([v, a]).T, torch.cat([a, v]), alpha=-1)
        self._index()

    def _hold(self, p: Tensor, m: Tensor, kept: Tensor) -> None:
        """Copies of some rows and columns, for products and for single rows."""
        self._p, self._m = (x.index_select(0, kept).index_select(1, kept) for x in (p, m))
        self.p, self.m = self._p.numpy(), self._m.numpy()

    def _index(self) -> None:
        """Empty buffers for the columns there are, and where each candidate lies."""
        self.v = np.zeros((PENDING, len(self.ids)))  # updates that wait, and
        self.a = np.zeros_like(self.v)  # as many of a'
        self.pending = 0
        self.place = np.full(len(self.score), -1, np.int64)
        self.place[self.ids] = np.arange(len(self.ids))
