"""Match the sources' channels, group by group (DESIGN section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
import torch

from passes._by_weights import match_by_weights, weight_agreement
from passes.observe import Statistics, planned_groups
from pleas_fx.algebra.assignment import consistent
from pleas_fx.algebra.moments import RowSums
from pleas_fx.algebra.similarity import correlations, cross_correlation, similarities, varying
from pleas_fx.ir import (
    BoolArray,
    FloatArray,
    Group,
    IntArray,
    Matching,
    Program,
    Symmetry,
)

BLOCK = 1024  # channels whose pairs with all others are held at once
TIE = 1e-3  # of concordance: channels that are multiples of each other correlate alike


@dataclass(frozen=True, slots=True)
class Match:
    """Options of the pass. ``on``: "activations" or "weights"."""

    name: str = "match"
    on: str = "activations"

    def run(
        self,
        programs: Sequence[Program],
        symmetries: Sequence[Symmetry],
        statistics: Statistics | None,
    ) -> Matching:
        if statistics is None or self.on == "weights":
            return match_weights(programs, symmetries[0])
        return match_activations(programs, symmetries[0], statistics)


def identity_matching(symmetry: Symmetry, sources: int) -> Matching:
    """Every channel with the one of the same number."""
    groups = planned_groups(symmetry)
    return Matching(
        {g.id: np.tile(np.arange(g.size), (sources, 1)) for g in groups},
        {g.id: np.ones(g.size) for g in groups},
    )


def families(groups: Sequence[Group]) -> list[tuple[Group, ...]]:
    """Groups that move together: those of a block family; every other group alone."""
    found: dict[tuple[str, int], list[Group]] = {}
    for group in groups:
        key = ("family", group.blocks.family) if group.blocks else ("group", int(group.id))
        found.setdefault(key, []).append(group)
    return [tuple(members) for members in found.values()]


def match_activations(
    programs: Sequence[Program], symmetry: Symmetry, statistics: Statistics
) -> Matching:
    """Assignments that maximise the summed Pearson correlation over all places.

    Channels that don't vary on the calibration images, and groups that are nowhere seen in rows
    which the sources share, are matched by their weights: those inside an operator, and those
    beside another group's channels (the hidden channels of a layer over tokens).
    """
    sources = statistics.sources
    base = identity_matching(symmetry, sources)
    partner, similarity = dict(base.partner), dict(base.similarity)
    places = {
        g.id: _Places([p.moments for p in statistics.points(g.id)], g.size, sources)
        for g in symmetry.groups
    }
    for family in families(symmetry.groups):
        pairs = {
            pair: [places[g.id].score(*pair) for g in family]
            for pair in combinations(range(sources), 2)
        }
        count = family[0].blocks.count if family[0].blocks else None
        for group, found in zip(family, consistent(pairs, sources, count), strict=True):
            partner[group.id] = found
    silent = {g.id: places[g.id].silent() for g in symmetry.groups}
    match_by_weights(programs, symmetry, families(symmetry.groups), partner, silent)
    for group in symmetry.groups:
        seen = places[group.id]
        similarity[group.id] = (
            seen.agreement(partner[group.id])
            if seen.moments
            else weight_agreement(programs, symmetry, group, partner)
        )
    for group in symmetry.fixed:
        moments = [p.moments for p in statistics.points(group.id)]
        similarity[group.id] = _in_place(moments, group.size, sources)
    return Matching(partner, similarity)


def _in_place(places: Sequence[RowSums], size: int, sources: int) -> FloatArray:
    """Mean over places and pairs of sources of the correlation of channels of the same number.

    Outputs may be ten thousands: not all pairs of channels at once.
    """
    pairs, total = list(combinations(range(sources), 2)), np.zeros(size)
    for moments, (s, t), first in product(places, pairs, range(0, size, BLOCK)):
        last = min(first + BLOCK, size)
        own, other = (slice(k * size + first, k * size + last) for k in (s, t))
        block = cross_correlation(moments, own, other)
        total[first:last] += block.diagonal().cpu().numpy()
    return total / max(len(places) * len(pairs), 1)


class _Places:
    """Where a group was observed: mean similarities of two sources' channels, over all places."""

    def __init__(self, moments: Sequence[RowSums], size: int, sources: int) -> None:
        self.moments, self.size, self.sources = moments, size, sources

    def score(self, s: int, t: int) -> FloatArray:
        """Correlation, and for ties a little concordance."""
        n, result = self.size, np.zeros((self.size, self.size))
        for first in range(0, n, BLOCK):  # wide groups have many pairs
            part = slice(first, min(first + BLOCK, n))
            result[part] = self._score(slice(s * n + part.start, s * n + part.stop), self._own(t))
        return result

    def _score(self, rows: slice, columns: slice) -> FloatArray:
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        correlated, concordant = np.zeros(shape), np.zeros(shape)
        for moments in self.moments:
            one, other = similarities(moments, rows, columns)
            correlated += one.cpu().numpy()
            concordant += other.cpu().numpy()
        places = max(len(self.moments), 1)
        return np.asarray(correlated / places + TIE * (concordant / places))

    def silent(self) -> BoolArray:
        """(sources, n): channels that vary nowhere."""
        varies = torch.zeros(self.sources * self.size, dtype=torch.bool)
        for moments in self.moments:
            varies |= varying(moments).cpu()
        return np.asarray(~varies.numpy().reshape(self.sources, self.size))

    def agreement(self, partner: IntArray) -> FloatArray:
        """Mean over places and pairs of sources of the correlation of matched channels."""
        places = torch.from_numpy(partner + self.size * np.arange(self.sources)[:, None])
        found = [
            correlations(moments, places[s], places[t]).cpu().numpy()
            for s, t in combinations(range(self.sources), 2)
            for moments in self.moments
        ]
        return np.asarray(np.mean(found, axis=0))

    def _own(self, source: int) -> slice:
        return slice(source * self.size, (source + 1) * self.size)


def match_weights(programs: Sequence[Program], symmetry: Symmetry) -> Matching:
    """Git Re-Basin's weight matching (Ainsworth et al. 2023): coordinate descent over groups."""
    base = identity_matching(symmetry, len(programs))
    partner = {g: p.copy() for g, p in base.partner.items()}
    similarity = dict(base.similarity)
    everything = {g.id: np.ones((len(programs), g.size), bool) for g in symmetry.groups}
    match_by_weights(programs, symmetry, families(symmetry.groups), partner, everything)
    for group in planned_groups(symmetry):
        similarity[group.id] = weight_agreement(programs, symmetry, group, partner)
    return Matching(partner, similarity)
