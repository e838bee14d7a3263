"""Match the sources' channels, group by group (DESIGN section 4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
import torch

from passes.observe import Statistics, planned_groups
from pleas_fx.algebra.assignment import consistent
from pleas_fx.algebra.moments import Moments, concordance, cross_correlation
from pleas_fx.ir import (
    Axis,
    FloatArray,
    Group,
    GroupId,
    IntArray,
    Matching,
    Permutation,
    Program,
    Symmetry,
)
from pleas_fx.permuting import occurrences, permuted

SWEEPS = 30
BLOCK = 1024  # channels whose pairs are held at once where only equal numbers count
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

    Groups that live inside an operator, where nobody sees them, are matched by their weights.
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
    unseen = [f for f in families(symmetry.groups) if not any(places[g.id].moments for g in f)]
    if unseen:
        reference = _weights(programs[0].module, symmetry)
        for s in range(1, sources):
            _descend(programs[s], symmetry, reference, partner, s, unseen)
    for group in symmetry.groups:
        similarity[group.id] = places[group.id].agreement(partner[group.id])
    for group in symmetry.fixed:
        moments = [p.moments for p in statistics.points(group.id)]
        similarity[group.id] = _in_place(moments, group.size, sources)
    return Matching(partner, similarity)


def _in_place(places: Sequence[Moments], size: int, sources: int) -> FloatArray:
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

    def __init__(self, moments: Sequence[Moments], size: int, sources: int) -> None:
        self.moments, self.size, self.sources = moments, size, sources
        self.correlation = {
            pair: self._mean(cross_correlation, *pair) for pair in combinations(range(sources), 2)
        }

    def score(self, s: int, t: int) -> FloatArray:
        """Correlation, and for ties a little concordance."""
        return self.correlation[s, t] + TIE * self._mean(concordance, s, t)

    def agreement(self, partner: IntArray) -> FloatArray:
        """Mean over pairs of sources of the correlation of matched channels."""
        found = [block[partner[s], partner[t]] for (s, t), block in self.correlation.items()]
        return np.asarray(np.mean(found, axis=0))

    def _mean(
        self, measure: Callable[[Moments, slice, slice], torch.Tensor], s: int, t: int
    ) -> FloatArray:
        n = self.size
        total = np.zeros((n, n))
        for moments in self.moments:
            block = measure(moments, slice(s * n, (s + 1) * n), slice(t * n, (t + 1) * n))
            total += block.cpu().numpy()
        return total / max(len(self.moments), 1)


def match_weights(programs: Sequence[Program], symmetry: Symmetry) -> Matching:
    """Git Re-Basin's weight matching (Ainsworth et al. 2023): coordinate descent over groups."""
    base = identity_matching(symmetry, len(programs))
    partner = {g: p.copy() for g, p in base.partner.items()}
    similarity = dict(base.similarity)
    reference = _weights(programs[0].module, symmetry)
    for s in range(1, len(programs)):
        _descend(programs[s], symmetry, reference, partner, s, families(symmetry.groups))
    for group in planned_groups(symmetry):
        similarity[group.id] = _weight_agreement(programs, symmetry, group, reference, partner)
    return Matching(partner, similarity)


def _weights(module: torch.nn.Module, symmetry: Symmetry) -> dict[str, torch.Tensor]:
    keys = {axis.key for axis in symmetry.layout.axes}
    state = module.state_dict()
    return {key: state[key].double() for key in keys if state[key].is_floating_point()}


def _descend(
    program: Program,
    symmetry: Symmetry,
    reference: Mapping[str, torch.Tensor],
    partner: dict[GroupId, IntArray],
    source: int,
    units: Sequence[tuple[Group, ...]],
) -> None:
    for _ in range(SWEEPS):
        changed = False
        for family in units:
            order = Permutation({g: p[source] for g, p in partner.items()})
            moved = _weights(permuted(symmetry, program.module, order), symmetry)
            scores = [_similarity(symmetry, g, reference, moved) for g in family]
            count = family[0].blocks.count if family[0].blocks else None
            steps = consistent({(0, 1): scores}, 2, count)
            for group, step in zip(family, steps, strict=True):
                changed |= bool((step[1] != np.arange(group.size)).any())
                partner[group.id][source] = partner[group.id][source][step[1]]
        if not changed:
            return


def _similarity(
    symmetry: Symmetry,
    group: Group,
    reference: Mapping[str, torch.Tensor],
    other: Mapping[str, torch.Tensor],
) -> FloatArray:
    """Inner products of what belongs to each channel, every tensor scaled to norm one."""
    total = np.zeros((group.size, group.size))
    for axis in group.axes:
        classes = symmetry.layout.axes[axis]
        if classes.ndim == 1 and axis.key in reference:
            a = _channel_rows(reference[axis.key], axis, classes, symmetry, group)
            b = _channel_rows(other[axis.key], axis, classes, symmetry, group)
            scale = float(a.norm() * b.norm()) or 1.0
            total += (a @ b.T / scale).numpy()
    return total


def _channel_rows(
    tensor: torch.Tensor, axis: Axis, classes: IntArray, symmetry: Symmetry, group: Group
) -> torch.Tensor:
    """(channels, everything that belongs to one channel)."""
    own = np.flatnonzero(symmetry.layout.group[classes] == group.id)
    channel = symmetry.layout.channel[classes[own]]
    order = own[np.lexsort((occurrences(classes[own]), channel))]
    rows = tensor.movedim(axis.dim, 0)[torch.from_numpy(order)]
    return rows.reshape(group.size, -1)


def _weight_agreement(
    programs: Sequence[Program],
    symmetry: Symmetry,
    group: Group,
    reference: Mapping[str, torch.Tensor],
    partner: Mapping[GroupId, IntArray],
) -> FloatArray:
    """Mean cosine between matched channels' weights."""
    found = []
    for s in range(1, len(programs)):
        order = Permutation({g: p[s] for g, p in partner.items()})
        moved = _weights(permuted(symmetry, programs[s].module, order), symmetry)
        score = _similarity(symmetry, group, reference, moved)
        mine = _similarity(symmetry, group, reference, reference).diagonal()
        theirs = _similarity(symmetry, group, moved, moved).diagonal()
        found.append(score.diagonal() / np.sqrt(np.maximum(mine * theirs, 1e-300)))
    return np.asarray(np.mean(found, axis=0))
