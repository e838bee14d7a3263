"""Find groups whose width the graph can't change, by trying (equal halves, shuffles)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from passes.match import families
from passes.observe import planned_groups
from passes.rewrite import Mismatch, rewrite
from pleas_fx.ir import (
    Group,
    GroupId,
    IntArray,
    Lane,
    Membership,
    Program,
    Symmetry,
    everyone,
    members,
    only,
)

SMALL = 4  # groups below this size are tried whole


@dataclass(frozen=True, slots=True)
class Probe:
    """Options of the pass."""

    name: str = "probe"
    heads: str = "separate"

    def run(
        self,
        programs: Sequence[Program],
        symmetries: Sequence[Symmetry],
        given: Mapping[GroupId, tuple[Lane, ...]],
    ) -> tuple[frozenset[GroupId], ...]:
        return probe(programs, symmetries, given, heads=self.heads)


def probe(
    programs: Sequence[Program],
    symmetries: Sequence[Symmetry],
    given: Mapping[GroupId, tuple[Lane, ...]],
    *,
    heads: str,
) -> tuple[frozenset[GroupId], ...]:
    """Sets of groups that have to stay whole together.

    Every free group gets irregular widths; where the rewrite refuses, the groups at that place
    become whole, until it goes through.
    """
    whole = whole_sets(symmetries[0], given)
    groups = planned_groups(symmetries[0])
    passed = 0
    for _ in range(60 * len(groups) + 60):
        lanes = _irregular(groups, whole, given, len(programs), passed)
        try:
            rewrite(programs, symmetries, lanes, heads=heads)
        except Mismatch as refusal:
            whole = joined(whole, refusal, given)
            passed = 0
        else:
            passed += 1
            if passed == _trials(groups, whole, given):
                return whole
    raise AssertionError("probing doesn't come to an end")


def _trials(
    groups: Sequence[Group],
    whole: Sequence[frozenset[GroupId]],
    given: Mapping[GroupId, tuple[Lane, ...]],
) -> int:
    """One trial where every width is free; else enough to tell every two whole sets apart."""
    small = [f for f in families(groups) if _units(f) < SMALL and f[0].id not in given]
    sets = len(whole) + len(small)
    return 2 + 2 * sets.bit_length() if sets else 1


def _units(family: Sequence[Group]) -> int:
    return family[0].blocks.count if family[0].blocks else family[0].size


def joined(
    whole: Sequence[frozenset[GroupId]],
    refusal: Mismatch,
    given: Mapping[GroupId, tuple[Lane, ...]],
) -> tuple[frozenset[GroupId], ...]:
    """The groups at a refusal become whole, and one set with all sets they were in.

    Raises:
        Mismatch: they were so already.
    """
    refused = frozenset(refusal.groups - given.keys())
    touched = [w for w in whole if w & refused]
    union = refused.union(*touched)
    if not refused or (len(touched) == 1 and union == touched[0]):
        raise refusal
    return (*(w for w in whole if not w & refused), union)


def whole_sets(
    symmetry: Symmetry, given: Mapping[GroupId, tuple[Lane, ...]]
) -> tuple[frozenset[GroupId], ...]:
    """What frozen channels demand: an operator that reads them reads them whole."""
    fixed = {g.id for g in symmetry.fixed} - given.keys()
    bundles = [frozenset(b & fixed) for b in symmetry.bundles]
    return tuple(dict.fromkeys([b for b in bundles if b] + [frozenset({g}) for g in fixed]))


def _irregular(
    groups: Sequence[Group],
    whole: Sequence[frozenset[GroupId]],
    given: Mapping[GroupId, tuple[Lane, ...]],
    sources: int,
    trial: int,
) -> dict[GroupId, tuple[Lane, ...]]:
    """Some channels merged, some apart, some dropped; whole sets all merged or all apart.

    All of them are merged in trial 0 and apart in trial 1; the trials after that tell every two
    sets apart in both ways.
    """
    rng = np.random.default_rng(trial)
    number = {g: k for k, w in enumerate(whole) for g in w}
    lanes: dict[GroupId, tuple[Lane, ...]] = dict(given)
    small = len(whole)
    for family in families(groups):
        count = _units(family)
        small += count < SMALL
        stuck = [number[g.id] for g in family if g.id in number]
        if not stuck and count == SMALL - 1 and trial == 0:
            shares = _all(count - 1, sources, False)
        elif stuck or count < SMALL:
            shares = _all(count, sources, _apart(stuck[0] if stuck else small, trial))
        else:
            shares = _shares(rng, count, sources)
        for group in family:
            if group.id not in given:
                lanes[group.id] = _lanes(group, shares, sources, count)
    return lanes


def _apart(number: int, trial: int) -> bool:
    """Whether set ``number`` is apart in a trial: one bit of its number, then its complement."""
    if trial < 2:
        return trial == 1
    bit, flip = divmod(trial - 2, 2)
    return bool(number >> bit & 1) != bool(flip)


def _all(count: int, sources: int, apart: bool) -> list[IntArray]:
    everything = np.arange(count)
    none = everything[:0]
    return [none] + [everything] * sources if apart else [everything] + [none] * sources


def _shares(rng: np.random.Generator, count: int, sources: int) -> list[IntArray]:
    order = rng.permutation(count)
    merged = max(2, int(count * rng.uniform(0.3, 0.6)))
    rest = order[merged:]
    parts = [np.sort(order[:merged])]
    for _ in range(sources):
        size = int(len(rest) * rng.uniform(0.5, 0.9))
        parts.append(np.sort(rng.permutation(rest)[:size]) if size >= 2 else rest[:0])
    return parts


def _lanes(group: Group, shares: Sequence[IntArray], sources: int, count: int) -> tuple[Lane, ...]:
    inner = group.size // count
    memberships: list[Membership] = [everyone(sources), *(only(s) for s in range(sources))]
    lanes = []
    for membership, units in zip(memberships, shares, strict=True):
        if len(units):
            channels = (units[:, None] * inner + np.arange(inner)).reshape(-1)
            table = np.full((len(channels), sources), -1, np.int64)
            table[:, list(members(membership))] = channels[:, None]
            lanes.append(Lane(membership, table))
    return tuple(lanes)
