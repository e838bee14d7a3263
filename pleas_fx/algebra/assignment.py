"""Assignments: channels to channels, blocks to blocks, several sources at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from pleas_fx.ir import FloatArray, IntArray

SWEEPS = 20
Similarities = Mapping[tuple[int, int], Sequence[FloatArray]]


def assign(similarity: FloatArray) -> IntArray:
    """For each row of (n, n) the column it is matched with; maximises the sum.

    Ties keep the order of the columns; NaN and −inf are worse than any number.
    """
    finite = np.isfinite(similarity)
    if not finite.any():
        return np.arange(len(similarity))
    low, high = float(similarity[finite].min()), float(similarity[finite].max())
    span = high - low or 1.0
    beyond = (len(similarity) + 1) * span
    scores = np.nan_to_num(similarity - low, nan=-beyond, posinf=beyond, neginf=-beyond)
    scores += 1e-12 * span * np.eye(*scores.shape)
    return np.asarray(linear_sum_assignment(scores, maximize=True)[1], np.int64)


def assign_blocks(
    similarities: Sequence[FloatArray], count: int
) -> tuple[IntArray, tuple[IntArray, ...]]:
    """Best exchange of whole blocks, with the best assignment inside each: exact.

    ``similarities`` holds one block-major matrix (count·inner, count·inner) for every group of
    the family. Returns the block each block is matched with, and per group the channels.
    """
    scores = np.zeros((count, count))
    inside: list[IntArray] = []
    for similarity in similarities:
        inner = len(similarity) // count
        tiles = similarity.reshape(count, inner, count, inner).transpose(0, 2, 1, 3)
        chosen = _inner(tiles)
        scores += np.take_along_axis(tiles, chosen[..., None], axis=3).sum((2, 3))
        inside.append(chosen)
    outer = assign(scores)
    channels = tuple(
        (outer[:, None] * c.shape[2] + c[np.arange(count), outer]).reshape(-1) for c in inside
    )
    return outer, channels


def _inner(tiles: FloatArray) -> IntArray:
    """(count, count, inner): the assignment inside every pair of blocks."""
    count, _, inner, _ = tiles.shape
    chosen = np.zeros((count, count, inner), np.int64)
    if inner > 1:
        for a, b in np.ndindex(count, count):
            chosen[a, b] = assign(tiles[a, b])
    return chosen


def consistent(similarity: Similarities, sources: int, count: int | None) -> list[IntArray]:
    """One matching for all sources, without contradiction around any cycle.

    ``similarity[s, t]`` with s < t holds a matrix a group (one group, or a family with ``count``
    blocks). Returns per group (sources, n): the channel of each source in every slot; source 0
    keeps its order. Coordinate ascent over sources on the sum of all pairs, from the better of
    two starts (every source matched with source 0, or with all before it); exact for two.
    """
    starts = [_chain(similarity, sources, count, reach) for reach in (1, sources)[: sources - 1]]
    partner = max(starts, key=lambda start: _total(similarity, start, sources))
    if sources == 2:
        return partner
    best = _total(similarity, partner, sources)
    for _ in range(SWEEPS):
        for s in range(sources):
            _rematch(similarity, partner, s, [t for t in range(sources) if t != s], count)
        score = _total(similarity, partner, sources)
        if score <= best + 1e-12 * abs(best):
            break
        best = score
    return [p[:, np.argsort(p[0])] for p in partner]


def _chain(similarity: Similarities, sources: int, count: int | None, reach: int) -> list[IntArray]:
    """Sources matched one after the other, each with the first ``reach`` of those before it."""
    sizes = [len(m) for m in next(iter(similarity.values()))]
    partner = [np.tile(np.arange(n), (sources, 1)) for n in sizes]
    for s in range(1, sources):
        _rematch(similarity, partner, s, range(min(s, reach)), count)
    return partner


def _pair(similarity: Similarities, s: int, t: int, k: int) -> FloatArray:
    return similarity[s, t][k] if s < t else similarity[t, s][k].T


def _rematch(
    similarity: Similarities,
    partner: list[IntArray],
    s: int,
    others: Sequence[int],
    count: int | None,
) -> None:
    """The best channels of source ``s`` for the slots as the ``others`` fill them."""
    sums = [
        np.sum([_pair(similarity, t, s, k)[p[t]] for t in others], axis=0)
        for k, p in enumerate(partner)
    ]
    found = [assign(m) for m in sums] if count is None else assign_blocks(sums, count)[1]
    for p, own in zip(partner, found, strict=True):
        p[s] = own


def _total(similarity: Similarities, partner: list[IntArray], sources: int) -> float:
    pairs = [(s, t) for s in range(sources) for t in range(s + 1, sources)]
    matched = [similarity[s, t][k][p[s], p[t]] for k, p in enumerate(partner) for s, t in pairs]
    return float(sum(np.nansum(m) for m in matched))
