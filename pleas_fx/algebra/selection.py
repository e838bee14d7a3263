"""Choose which channels to keep: greedy column subset selection by pivoted Cholesky.

Every source s has target features x_s (n of them) and a weighting Q_s: what its consumers read.
A slot is either single (one channel, readable by its own source) or merged (the mean of matched
channels, readable by all). What a set of slots leaves is the variance of x_s, weighted by Q_s,
that the readable slots can't reconstruct linearly: tr(Q_s R_s) / tr(Q_s Σ_s), where R_s is the
residual covariance of x_s. Groups of a family are several such problems of the same units, chosen
together: a unit's gains are added up over them, and no group explains anything of another.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pleas_fx.algebra.deflation import Residual, Start, Workspace, start
from pleas_fx.algebra.weighting import Weighting
from pleas_fx.ir import FloatArray, IntArray

MERGED = -1
WIDE = 512  # channels of one source beyond which float32 will do
LEAST_GAIN = 1e-13  # relative error per price below which nothing more is chosen
ROUNDINGS = 64  # of the covariance: smaller relative errors are none
TIE = 1e-9  # scores this close, relatively, count as equal
BOTH = (True, True)


@dataclass(frozen=True, slots=True)
class Path:
    """Units in the order in which they were chosen; any prefix is a selection."""

    kind: IntArray  # source of a single unit, MERGED for a merged one
    unit: IntArray
    error: FloatArray  # (len + 1,): relative error of every prefix, mean over sources

    def __len__(self) -> int:
        return len(self.kind)

    @property
    def explained(self) -> FloatArray:
        """(len + 1,): share of the weighted variance that every prefix reconstructs."""
        return 1.0 - self.error


@dataclass(frozen=True, slots=True)
class Problem:
    """One group. ``covariance`` (N·n, N·n): of all sources' channels, already in matched order.

    ``weighting[s]`` is Q_s (n, n); ``unit`` channels in a row form one unit (a block). In float32
    (beyond ``WIDE``) a selection takes half the time, and errors below a few of its roundings are
    reported as none.
    """

    covariance: Tensor
    weighting: Sequence[Weighting]
    unit: int = 1

    @property
    def sources(self) -> int:
        """N."""
        return len(self.weighting)

    @property
    def size(self) -> int:
        """n: channels of one source."""
        return self.weighting[0].size

    @property
    def units(self) -> int:
        """How many there are to choose from."""
        return self.size // self.unit

    @property
    def tiles(self) -> Tensor:
        """(N, n, N, n): the covariance by sources."""
        return self.covariance.view(self.sources, self.size, self.sources, self.size)

    def in_float32(self) -> Problem:
        """The same, less exactly."""
        weighting = [q.to(torch.float32) for q in self.weighting]
        return replace(self, covariance=self.covariance.float(), weighting=weighting)

    def of(self, kept: Sequence[int]) -> Problem:
        """Some sources by themselves."""
        if len(kept) == self.sources:
            return self
        own = torch.cat([torch.arange(self.size) + s * self.size for s in kept])
        return replace(
            self,
            covariance=self.covariance[own[:, None], own],
            weighting=[self.weighting[s] for s in kept],
        )


def select(
    parts: Sequence[Problem],
    *,
    merged_price: float,
    single_price: float,
    limit: int,
    exclusive: bool = True,
    emphasis: tuple[float, ...] = (),
) -> Path:
    """Greedy by error removed per price, until ``limit`` units or nothing is left to gain.

    ``parts``: the groups of a family, with the same number of units; mostly one.
    An infinite price excludes a kind. ``exclusive``: a channel is in at most one slot; otherwise
    a channel may also be kept apart beside the merged slot that holds it, where that still
    removes error. Equal scores: merged first, then the lower source, then the lower index.
    A unit's score is the sum over its channels, each by itself; its error is exact.
    ``emphasis``: how often every source's relative error counts; none: once each.
    """
    prices = ((merged_price, single_price),)
    return select_all(parts, prices, limit=limit, exclusive=exclusive, emphasis=emphasis)[0]


def select_all(
    parts: Sequence[Problem],
    prices: Sequence[tuple[float, float]],
    *,
    limit: int,
    exclusive: bool = True,
    emphasis: tuple[float, ...] = (),
) -> tuple[Path, ...]:
    """:func:`select` for several pairs of prices (merged, single) of the same problems."""
    joint = any(_kinds(pair) == BOTH for pair in prices)
    asked = [BOTH if joint else _kinds(pair) for pair in prices]
    totals = _totals(parts, emphasis)
    found: dict[tuple[float, float], Path] = {}
    for kinds in dict.fromkeys(asked):
        own = [pair for pair, other in zip(prices, asked, strict=True) if other == kinds]
        states = _states(parts, own, kinds, totals)
        for pair, state in zip(own, states, strict=True):
            found[pair] = _select(state, limit, exclusive)
    return tuple(found[pair] for pair in prices)


def _states(
    parts: Sequence[Problem],
    prices: Sequence[tuple[float, float]],
    kinds: tuple[bool, bool],
    totals: Sequence[float],
) -> Iterator[_State]:
    """One after the other, in the same memory: each is used up before the next is asked for."""
    starts = [_starts(part, kinds, totals) for part in parts]
    half = np.empty(max(given.p.numel() for own in starts for given in own), _dtype(parts))
    works: list[list[Workspace]] = []
    for left in reversed(range(len(prices))):
        if left == 0:
            works = [[Workspace.of(given, half) for given in own] for own in starts]
        elif not works:
            works = [[Workspace.like(given, half) for given in own] for own in starts]
        yield _State(parts, starts, works, prices[-1 - left])


def _dtype(parts: Sequence[Problem]) -> np.dtype[Any]:
    return parts[0].covariance.numpy().dtype


def _kinds(prices: tuple[float, float]) -> tuple[bool, bool]:
    """Whether merged and single units may be chosen."""
    return math.isfinite(prices[0]), math.isfinite(prices[1])


def _select(state: _State, limit: int, exclusive: bool) -> Path:
    kinds: list[int] = []
    chosen: list[int] = []
    errors = [state.error]
    while len(kinds) < limit:
        kind, unit, score = state.best()
        if score <= LEAST_GAIN:
            break
        state.take(kind, unit)
        if exclusive:
            state.exclude(kind, unit)
        kinds.append(kind)
        chosen.append(unit)
        errors.append(state.error)
    left = np.array(errors)
    left[left < ROUNDINGS * state.accuracy] = 0.0
    return Path(np.array(kinds, np.int64), np.array(chosen, np.int64), left)


class _State:
    """What is left of all groups of a family, and what every unit would remove of it."""

    def __init__(
        self,
        parts: Sequence[Problem],
        starts: Sequence[Sequence[Start]],
        works: Sequence[Sequence[Workspace]],
        prices: tuple[float, float],
    ) -> None:
        self.merged_price, self.single_price = prices
        given = zip(parts, starts, works, strict=True)
        self.groups = [_Group(*own, _kinds(prices)) for own in given]
        self.accuracy = max(start.accuracy for own in starts for start in own)
        self.something = np.array([start.total > 0 for start in starts[0]])

    @property
    def error(self) -> float:
        """Mean over the sources."""
        explained = np.sum([group.explained for group in self.groups], 0)
        return float((self.something * np.maximum(1.0 - explained, 0.0)).mean())

    def best(self) -> tuple[int, int, float]:
        """Kind, unit and score of the best candidate."""
        by_unit = self.groups[0].by_unit()
        for group in self.groups[1:]:
            by_unit += group.by_unit()
        sources, _, units = by_unit.shape
        scores = np.empty((sources + 1, units))
        scores[0] = by_unit[:, 1].sum(0) / self.merged_price
        scores[1:] = by_unit[:, 0] / self.single_price
        flat = scores.reshape(-1)
        score = float(flat.max()) if len(flat) else 0.0
        first = int((flat >= score * (1 - TIE)).argmax()) if score else 0
        return first // units - 1, first % units, score / sources

    def take(self, kind: int, unit: int) -> None:
        """Deflate every source that can read the unit."""
        for group in self.groups:
            group.take(kind, unit)

    def exclude(self, kind: int, unit: int) -> None:
        """Remove the candidates that share a channel with a unit."""
        for group in self.groups:
            group.exclude(kind, unit)


class _Group:
    """The residuals of all sources; candidates are singles 0…n-1 and merged n…2n-1 in each."""

    def __init__(
        self,
        problem: Problem,
        starts: Sequence[Start],
        works: Sequence[Workspace],
        kinds: tuple[bool, bool],
    ) -> None:
        n = self.size = problem.size
        self.unit, self.units = problem.unit, problem.units
        merged, single = kinds
        allowed = torch.arange(0 if single else n, 2 * n if merged else n)
        pairs = zip(starts, works, strict=True)
        self.residuals = [Residual(given, allowed, 2 * n, work) for given, work in pairs]
        self.gains = np.stack([r.gains() for r in self.residuals])

    @property
    def explained(self) -> list[float]:
        """Of every source, by what was taken."""
        return [residual.explained for residual in self.residuals]

    def by_unit(self) -> FloatArray:
        """(sources, 2, units): what every single and merged unit would remove."""
        tiles: FloatArray = self.gains.reshape(len(self.gains), 2, self.units, self.unit)
        return np.asarray(tiles.sum(-1))

    def take(self, kind: int, unit: int) -> None:
        """Deflate every source that can read the unit."""
        for s in range(len(self.residuals)) if kind == MERGED else (kind,):
            for column in self._columns(kind, unit):
                self.residuals[s].take(column)
            self.gains[s] = self.residuals[s].gains()

    def exclude(self, kind: int, unit: int) -> None:
        """Remove the candidates that share a channel with a unit."""
        columns = self._columns(0 if kind == MERGED else MERGED, unit)
        for residual in self.residuals:
            residual.drop(columns)
        self.gains[:, columns.start : columns.stop] = 0.0

    def _columns(self, kind: int, unit: int) -> range:
        start = unit * self.unit + (self.size if kind == MERGED else 0)
        return range(start, start + self.unit)


def _totals(parts: Sequence[Problem], emphasis: tuple[float, ...]) -> list[float]:
    """The weighted variance of every source; of one that counts twice, half of it."""
    emphasis = emphasis or (1.0,) * parts[0].sources
    return [
        sum(part.weighting[s].power(part.tiles[s, :, s]) for part in parts) / times
        for s, times in enumerate(emphasis)
    ]


def _starts(problem: Problem, kinds: tuple[bool, bool], totals: Sequence[float]) -> list[Start]:
    """Per source, the covariances of the candidates: its own channels, the merged ones, or both."""
    n, tiles = problem.size, problem.tiles
    accuracy = torch.finfo(problem.covariance.dtype).eps
    numbers = torch.arange(2 * n)
    merged = tiles.mean((0, 2)) if kinds[0] else tiles
    found = []
    for s, (weighting, total) in enumerate(zip(problem.weighting, totals, strict=True)):
        own, q = tiles[s, :, s], weighting.to(tiles.dtype)
        if not kinds[0]:
            found.append(start(_own(own), own, q, numbers[:n], total, accuracy))
            continue
        cross = tiles[s].mean(1)
        if not kinds[1]:
            found.append(start(_own(merged), cross, q, numbers[n:], total, accuracy))
            continue
        targets = torch.cat([own, cross], 1)
        joint = torch.cat([targets, torch.cat([cross.T, merged], 1)])
        found.append(start(joint, targets, q, numbers, total, accuracy))
    return found


def _own(matrix: Tensor) -> Tensor:
    """A copy that is worked in."""
    return matrix.clone(memory_format=torch.contiguous_format)


def lower_bounds(problem: Problem) -> FloatArray:
    """(N, n + 1): the least relative error of each source that any k features can leave.

    The sum of the eigenvalues of Q^½ Σ Q^½ beyond the k largest (Eckart and Young): features of
    any kind, not only channels.
    """
    n, rows = problem.size, []
    for s, weighting in enumerate(problem.weighting):
        own = slice(s * n, (s + 1) * n)
        root = _root(weighting.whole().double())
        inside = root.T @ problem.covariance[own, own].double() @ root
        values = torch.linalg.eigvalsh(inside).clamp_min(0)
        kept = torch.cat([values.new_zeros(1), values.cumsum(0)]).flip(0)
        rows.append((kept / kept[0].clamp_min(1e-300)).cpu().numpy())
    return np.stack(rows)


def lower_bound(problem: Problem, kept: int | Sequence[int]) -> float:
    """Mean over sources, where source s reads ``kept[s]`` features (or all the same number)."""
    counts = [kept] * problem.sources if isinstance(kept, int) else kept
    bounds = lower_bounds(problem)
    chosen = [row[min(k, problem.size)] for row, k in zip(bounds, counts, strict=True)]
    return float(np.mean(chosen))


def _root(weighting: Tensor) -> Tensor:
    """(n, n): a factor L with L Lᵀ = Q."""
    values, vectors = torch.linalg.eigh(weighting)
    root: Tensor = vectors * values.clamp_min(0).sqrt()
    return root
