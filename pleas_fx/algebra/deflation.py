"""What chosen columns leave of one source: a pivoted Cholesky with delayed updates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pleas_fx.algebra.products import add_upper
from pleas_fx.algebra.weighting import Weighting
from pleas_fx.ir import FloatArray, IntArray

DEAD = 1e-9  # share of its variance below which a candidate adds nothing
PENDING = 32  # columns taken between two updates of the matrices
CROWDED = 0.8  # matrices are cut down when fewer of their columns are still candidates


@dataclass(frozen=True, slots=True)
class Start:
    """One source before anything is chosen; on the CPU, in memory of its own."""

    p: Tensor  # (candidates, candidates): their covariance
    m: Tensor  # the upper triangle of P_x Q P_xᵀ, with P_x their covariance with the targets
    ids: Tensor  # numbers of the candidates, ascending
    total: float  # weighted variance of the targets, and of those of other groups in a family
    accuracy: float  # relative, of the covariance


@dataclass(frozen=True, slots=True)
class Workspace:
    """Memory for a source's matrices, used by one path after the other: fresh pages cost more
    than copying. ``half`` is shared by all.
    """

    p: FloatArray
    m: FloatArray
    half: FloatArray

    @classmethod
    def like(cls, given: Start, half: FloatArray) -> Workspace:
        """Beside a start, which stays as it is."""
        return cls(
            np.empty(given.p.numel(), half.dtype), np.empty(given.m.numel(), half.dtype), half
        )

    @classmethod
    def of(cls, given: Start, half: FloatArray) -> Workspace:
        """A start's own, which is used up."""
        return cls(given.p.numpy().reshape(-1), given.m.numpy().reshape(-1), half)

    def cut(self, matrix: FloatArray, kept: IntArray, memory: FloatArray) -> FloatArray:
        """Some rows and columns of a matrix, which may lie in the same ``memory``.

        Numpy's ``take`` is several times as fast as torch's ``index_select``.
        """
        rows, columns = len(kept), len(matrix)
        half = self.half[: rows * columns].reshape(rows, columns)
        matrix.take(kept, 0, out=half, mode="clip")
        whole = memory[: rows * rows].reshape(rows, rows)
        return half.take(kept, 1, out=whole, mode="clip")


def start(
    p: Tensor, targets: Tensor, weighting: Weighting, ids: Tensor, total: float, accuracy: float
) -> Start:
    """From covariances of the candidates, of n targets with them (n, candidates), and Q (n, n).

    ``p`` becomes the start's.
    """
    m = torch.zeros(p.shape, dtype=p.dtype)
    weighting.add_form(m, targets)
    return Start(p, m, ids, total, accuracy)


class Residual:
    """Residual covariance P of the candidates, and M = P_x Q P_xᵀ with P_x its targets' part.

    A candidate c by itself removes M_cc / P_cc of the error. Taking it, with v = P_c / √P_cc,
    a = M_c / √P_cc and β = M_cc / P_cc, gives P − v vᵀ and M − v a'ᵀ − a' vᵀ, a' = a − β v / 2:
    both matrices only ever need their columns, so updates wait and are applied as products. Only
    the upper triangles are kept up to date.

    One column is little work: it is done by numpy, whose calls cost least.
    """

    def __init__(self, given: Start, allowed: Tensor, numbers: int, work: Workspace) -> None:
        """``allowed``: candidates of ``given``, of so many numbers; ``work`` is no one else's."""
        something = given.total > 0
        self.total = given.total if something else 1.0
        self.explained = 0.0
        self.score = np.zeros(numbers)
        self.ids = allowed.numpy()
        self.work = work
        at = np.searchsorted(given.ids.numpy(), self.ids)
        self.p = work.cut(given.p.numpy(), at, work.p)
        self.m = work.cut(given.m.numpy(), at, work.m)
        self.variance = self.p.diagonal().astype(np.float64)
        self.weighted = self.m.diagonal() * (1.0 if something else 0.0)
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
        v, a = _row(self.p, at), _row(self.m, at)
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
        self.explained += removed / self.total
        if self.pending == PENDING:
            self._flush()

    def drop(self, candidates: range) -> None:
        """Take candidates off the list without using them."""
        at = self.place[candidates.start : candidates.stop]
        self.variance[at[at >= 0]] = 0.0

    def _flush(self) -> None:
        """Apply the pending updates, to the columns that can still be chosen."""
        alive = np.flatnonzero(self.variance > self.floor)
        v, a = self.v, self.a
        if len(alive) < CROWDED * len(self.ids):
            self.score[:] = 0.0
            self.p = self.work.cut(self.p, alive, self.work.p)
            self.m = self.work.cut(self.m, alive, self.work.m)
            v, a = v.take(alive, 1), a.take(alive, 1)
            self.variance, self.weighted = self.variance[alive], self.weighted[alive]
            self.floor, self.ids = self.floor[alive], self.ids[alive]
        one, two = torch.from_numpy(v), torch.from_numpy(np.concatenate([v, a]))
        add_upper(torch.from_numpy(self.p), one, one, -1.0)
        add_upper(torch.from_numpy(self.m), two, torch.from_numpy(np.concatenate([a, v])), -1.0)
        self._index()

    def _index(self) -> None:
        """Empty buffers for the columns there are, and where each candidate lies."""
        self.v = np.zeros((PENDING, len(self.ids)), self.p.dtype)  # updates that wait, and
        self.a = np.zeros_like(self.v)  # as many of a'
        self.pending = 0
        self.place = np.full(len(self.score), -1, np.int64)
        self.place[self.ids] = np.arange(len(self.ids))


def _row(matrix: FloatArray, at: int) -> FloatArray:
    """A row of a symmetric matrix, from its upper triangle."""
    return np.concatenate([matrix[:at, at], matrix[at, at:]])
