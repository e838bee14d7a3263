"""Find groups whose width the graph can't change, by trying (equal halves, shuffles)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import networkx as nx
import numpy as np
from torch import fx

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
from pleas_fx.module_tree import discard

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
    places = frozenset(_places(programs[0], symmetries[0]))
    passed = 0
    for _ in range(60 * len(groups) + 60):
        numbers = _numbers(groups, whole, given, places)
        stuck = frozenset[GroupId]().union(*whole)
        lanes = _irregular(groups, numbers, stuck, given, len(programs), passed)
        try:
            tried = rewrite(programs, symmetries, lanes, heads=heads)
        except Mismatch as refusal:
            whole = joined(whole, refusal, given)
            passed = 0
        else:
            discard(tried.module)
            passed += 1
            if passed == _trials(numbers):
                return whole
    raise AssertionError("probing doesn't come to an end")


def _places(program: Program, symmetry: Symmetry) -> Iterator[frozenset[GroupId]]:
    """The groups that meet at every node: all that a refusal there can depend on."""
    held: dict[fx.Node, frozenset[GroupId]] = {}
    group = symmetry.layout.group
    for node in program.module.graph.nodes:
        read = frozenset[GroupId]().union(*(held[n] for n in node.all_input_nodes))
        classes = symmetry.layout.values.get(node.name)
        held[node] = read if not classes else _groups(group, classes)
        yield read | held[node]


def _groups(group: IntArray, classes: Sequence[IntArray]) -> frozenset[GroupId]:
    own = np.unique(np.concatenate([c[c >= 0] for c in classes]))
    return frozenset(GroupId(g) for g in np.unique(group[own]).tolist())


def _numbers(
    groups: Sequence[Group],
    whole: Sequence[frozenset[GroupId]],
    given: Mapping[GroupId, tuple[Lane, ...]],
    places: frozenset[frozenset[GroupId]],
) -> dict[GroupId, int]:
    """Of the groups that are tried whole: other ones for sets that meet anywhere."""
    sets = _sets(groups, whole, given)
    meetings: nx.Graph[int] = nx.Graph()
    meetings.add_nodes_from(range(len(sets)))
    for place in places:
        here = [k for k, s in enumerate(sets) if s & place]
        meetings.add_edges_from((a, b) for a in here for b in here if a < b)
    colours = nx.greedy_color(meetings)
    return {g: colours[k] for k, s in enumerate(sets) for g in s}


def _sets(
    groups: Sequence[Group],
    whole: Sequence[frozenset[GroupId]],
    given: Mapping[GroupId, tuple[Lane, ...]],
) -> list[frozenset[GroupId]]:
    """What has to stay whole together, and what is too small for irregular widths."""
    stuck = frozenset[GroupId]().union(*whole)
    small = [frozenset(g.id for g in f) for f in families(groups) if _units(f) < SMALL]
    return [*whole, *(s - given.keys() for s in small if not s & stuck and not s <= given.keys())]


def _trials(numbers: Mapping[GroupId, int]) -> int:
    """One trial where every width is free; else enough to tell every two numbers apart."""
    return 2 + 2 * max(numbers.values()).bit_length() if numbers else 1


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
    numbers: Mapping[GroupId, int],
    stuck: frozenset[GroupId],
    given: Mapping[GroupId, tuple[Lane, ...]],
    sources: int,
    trial: int,
) -> dict[GroupId, tuple[Lane, ...]]:
    """Some channels merged, some apart, some dropped; those with a number all merged or all apart.

    All of them are merged in trial 0 and apart in trial 1; the trials after that tell every two
    numbers apart in both ways.
    """
    rng = np.random.default_rng(trial)
    lanes: dict[GroupId, tuple[Lane, ...]] = dict(given)
    for family in families(groups):
        count = _units(family)
        number = next((numbers[g.id] for g in family if g.id in numbers), None)
        if number is None:
            shares = _shares(rng, count, sources)
        elif count == SMALL - 1 and trial == 0 and not any(g.id in stuck for g in family):
            shares = _all(count - 1, sources, False)
        else:
            shares = _all(count, sources, _apart(number, trial))
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
