"""Assignments: channels to channels, blocks to blocks, several sources at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from pleas_fx.ir import FloatArray, IntArray

SWEEPS = 20


def assign(similarity: FloatArray) -> IntArray:
    """For each row the column that is matched with it; maximises the sum, ties keep the order."""
    clean = np.nan_to_num(similarity, nan=-1e30, posinf=1e30, neginf=-1e30)
    scale = max(float(np.abs(clean).max(initial=0.0)), 1e-300)
    tie_break = 1e-12 * scale * np.eye(*clean.shape)
    return np.asarray(linear_sum_assignment(clean + tie_break, maximize=True)[1], np.int64)


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
        chosen = np.empty((count, count, inner), np.int64)
        for a, b in np.ndindex(count, count):
            chosen[a, b] = assign(tiles[a, b])
            scores[a, b] += tiles[a, b][np.arange(inner), chosen[a, b]].sum()
        inside.append(chosen)
    outer = assign(scores)
    channels = tuple(
        (outer[:, None] * c.shape[2] + c[np.arange(count), outer]).reshape(-1) for c in inside
    )
    return outer, channels


def consistent(
    similarity: Mapping[tuple[int, int], Sequence[FloatArray]], sources: int, count: int | None
) -> list[IntArray]:
    """One matching for all sources, without contradiction around any cycle.

    ``similarity[s, t]`` with s < t holds a matrix a group (one group, or a family with ``count``
    blocks). Returns per group (sources, n): the channel of each source in every slot; source 0
    keeps its order. Coordinate ascent over sources on the sum of all pairs; exact for two.
    """
    sizes = [len(m) for m in next(iter(similarity.values()))]
    partner = [np.tile(np.arange(n), (sources, 1)) for n in sizes]
    for s in range(1, sources):
        _rematch(similarity, partner, s, range(s), count)
    if sources == 2:
        return partner
    best = _total(similarity, partner, sources)
    for _ in range(SWEEPS):
        for s in range(1, sources):
            _rematch(similarity, partner, s, [t for t in range(sources) if t != s], count)
        score = _total(similarity, partner, sources)
        if score <= best * (1 + 1e-12):
            break
        best = score
    return partner


def _pair(
    similarity: Mapping[tuple[int, int], Sequence[FloatArray]], s: int, t: int, k: int
) -> FloatArray:
    return similarity[s, t][k] if s < t else similarity[t, s][k].T


def _rematch(
    similarity: Mapping[tuple[int, int], Sequence[FloatArray]],
    partner: list[IntArray],
    s: int,
    others: Sequence[int] | range,
    count: int | None,
) -> None:
    sums = [
        sum(_pair(similarity, t, s, k)[p[t]] for t in others) for k, p in enumerate(partner)
    ]
    if count is None:
        for p, total in zip(partner, sums, strict=True):
            p[s] = assign(np.asarray(total))
        return
    _, channels = assign_blocks([np.asarray(m) for m in sums], count)
    for p, own in zip(partner, channels, strict=True):
        p[s] = own


def _total(
    similarity: Mapping[tuple[int, int], Sequence[FloatArray]], partner: list[IntArray], n: int
) -> float:
    pairs = [(s, t) for s in range(n) for t in range(s + 1, n)]
    return float(
        sum(similarity[s, t][k][p[s], p[t]].sum() for k, p in enumerate(partner) for s, t in pairs)
    )
