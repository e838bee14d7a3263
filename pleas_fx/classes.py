"""From labels to groups: connected components, blocks, signatures. Arrays only, no network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pleas_fx.blocks import Hash, Units, find_units, mix, pairs
from pleas_fx.ir import Axis, Blocks, Frozen, Group, GroupId, IntArray, Layout
from pleas_fx.permuting import occurrences

PORTION = 1 << 20
MANY = 1 << 14


@dataclass(frozen=True, slots=True)
class Facts:
    """What the label propagation found, as arrays of label ids."""

    classes: IntArray  # of each label: ties make labels one class
    axes: Mapping[Axis, IntArray]
    values: Mapping[str, tuple[IntArray, ...]]  # one array for all that carry the same labels
    nests: Sequence[tuple[IntArray, IntArray]]  # (children, parents)
    pins: Sequence[tuple[IntArray, str, str]]  # labels, node, reason
    kernels: IntArray  # labels of kernel positions: no channels at all
    joined: IntArray  # labels that were concatenated with entries that have none
    sites: Sequence[IntArray]  # labels that went through a place: equal channels went together
    colours: Hash  # what an earlier round knew of each label; 0: nothing

    @property
    def count(self) -> int:
        """How many labels there are; classes are numbered below that."""
        return len(self.classes)

    @property
    def padded(self) -> IntArray:
        """``classes``, and -1 at its end: what label -1, which is none, looks up."""
        return np.append(self.classes, -1)

    def labels(self) -> dict[int, IntArray]:
        """Every array of labels that values carry, by its identity."""
        return {id(c): c for coordinates in self.values.values() for c in coordinates}


@dataclass(frozen=True, slots=True)
class Grouping:
    """The groups, movable, fixed and implicit ones, and where their classes are."""

    groups: tuple[Group, ...]
    fixed: tuple[Group, ...]
    implicit: tuple[Group, ...]
    bundles: tuple[frozenset[GroupId], ...]
    frozen: tuple[Frozen, ...]
    layout: Layout


def collapses(facts: Facts) -> bool:
    """Whether ties made labels equal that were told apart when they met an operator."""
    classes, padded = facts.classes, facts.padded
    for labels in facts.labels().values():
        if sum(n > 1 for n in labels.shape) > 1:
            collapsed = _collapsed(padded[labels])
            if collapsed.shape != labels.shape:
                return True
    for children, parents in facts.nests:
        if pairs(classes[children], parents).shape[1] < len(children):
            return True
    return False


def settled_axes(facts: Facts) -> dict[Axis, IntArray]:
    """The classes found, as labels of the parameters' axes."""
    classes = facts.classes
    return {axis: classes[labels] for axis, labels in facts.axes.items() if labels.ndim == 1}


def settled_colours(facts: Facts) -> Hash:
    """The signatures of the classes found, as colours of their labels."""
    return signatures(facts)[: facts.classes.max(initial=-1) + 1]


def alone(facts: Facts, axes: Set[Axis]) -> bool:
    """Whether nothing that moves with these axes is on any other, nor in a block or one itself."""
    own, others = np.zeros(facts.count, bool), np.zeros(facts.count, bool)
    for axis, labels in facts.axes.items():
        (own if axis in axes else others)[facts.classes[labels[labels >= 0]]] = True
    for both in facts.nests:
        for labels in both:
            others[facts.classes[labels]] = True
    return not (own & others).any()


def positions(
    facts: Facts, tried: Set[Axis], read: Set[Axis], reasons: Set[str], unlabelled: str
) -> frozenset[Axis]:
    """Those of the axes ``tried`` that aren't channels: held for these reasons, and on no other.

    What was concatenated with entries that have no labels (tokens) counts as held.
    Layers may ``read`` what met a value ``unlabelled`` along it: patches that are joined, say. What
    moves with nothing stays in place, and needs no labels for that (some entries tell for all: the
    others may have been cut off). Where there is none of these, axes whose entries are all tied to
    each other; as long as positions have labels, they tie more.
    """
    classes = facts.classes
    held, channel, met, made = (np.zeros(facts.count, bool) for _ in range(4))
    for labels, _, reason in facts.pins:
        (held if reason in reasons else channel)[classes[labels]] = True
        met[classes[labels]] |= reason == unlabelled
    held[classes[facts.joined]] = True
    for axis, labels in facts.axes.items():
        own = classes[labels[labels >= 0]]
        channel[own] |= axis not in tried
        made[own] |= axis not in tried and axis not in read
    own_classes = {a: classes[labels] for a, labels in facts.axes.items() if a in tried}
    still = held & ~channel
    found = [
        axis
        for axis, own in own_classes.items()
        if still[own].all() or (met[own].any() and not made[own].any())
    ]
    if not found:
        tied = {a for a, own in own_classes.items() if len(np.unique(own)) == 1}
        found = [a for a in tied if not channel[own_classes[a]].any()]
    return frozenset(found)


def assemble(facts: Facts) -> Grouping:
    """Classes are the components of the ties; equal ones form groups, blocks form families."""
    classes = facts.classes
    pinned = np.zeros(facts.count, bool)
    for labels, _, _ in facts.pins:
        pinned[classes[labels]] = True
    relations = [pairs(classes[c], classes[p]) for c, p in facts.nests]
    units = find_units(facts.count, relations)
    pinned[units.held] = True
    kernel = np.zeros(facts.count, bool)
    kernel[classes[facts.kernels]] = True
    signature = signatures(facts) + units.colours
    keys = _keys(classes, signature, pinned, units.of)
    return _Builder(facts, classes, pinned, kernel, keys, units).build()


def signatures(facts: Facts) -> Hash:
    """A hash of the places each class goes through: equal ones may be exchanged.

    Where a class holds several labels or occurs several times, its occurrences are exchanged in
    order; so the hash also says in which order its labels stand at each place.
    """
    classes, padded = facts.classes, facts.padded
    rank = _ranks(classes)
    signature = np.zeros(facts.count, np.uint64)
    np.add.at(signature, classes, mix(facts.colours) * (facts.colours > 0))
    places = [labels.reshape(-1) for labels in facts.axes.values()]
    places += [_runs(labels).reshape(-1) for labels in facts.sites]
    places = [_telling(labels, padded) for labels in places]
    for first, some in _portions(places):
        labels, salt = _labelled(some, first + 1)
        here = labels >= 0
        labels, salt = labels[here], salt[here]
        own = classes[labels]
        which = _unsigned(occurrences(salt * facts.count + own))
        _stamp(signature, own, salt, mix(which) + rank[labels])
    children, salt = _labelled([c for c, _ in facts.nests], len(places) + 1)
    parents, _ = _labelled([p for _, p in facts.nests], 0)
    _stamp(signature, classes[children], salt, rank[parents])
    return signature


def _telling(labels: IntArray, classes: IntArray) -> IntArray:
    """One label of a place that a single class is at: it is told apart from all others by that."""
    if len(labels) < MANY or (classes[labels] != classes[labels[0]]).any():
        return labels
    return labels[:1]


def _runs(labels: IntArray) -> IntArray:
    """One of every run of equal rows, where all runs are equally long: as in grouped weights."""
    if labels.size < MANY:
        return labels
    rows = labels.reshape(-1, labels.shape[-1])
    if len(rows) == 1 or (rows[0] != rows[1]).any():  # no run, or none as long as the others
        return labels
    starts = np.flatnonzero((rows[1:] != rows[:-1]).any(1)) + 1
    lengths = np.diff(starts, prepend=0, append=len(rows))
    return rows[np.append(0, starts)] if (lengths == lengths[0]).all() else labels


def _portions(places: Sequence[IntArray]) -> Iterator[tuple[int, Sequence[IntArray]]]:
    """Places as many at a time as memory holds easily, with the number of the first."""
    first = size = 0
    for number, place in enumerate(places):
        if size and size + len(place) > PORTION:
            yield first, places[first:number]
            first, size = number, 0
        size += len(place)
    yield first, places[first:]


def _labelled(places: Sequence[IntArray], first: int) -> tuple[IntArray, IntArray]:
    """Places one after the other, and the number of the place of each entry."""
    if not places:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    numbers = np.arange(first, first + len(places))
    return np.concatenate(places), np.repeat(numbers, [len(p) for p in places])


def _stamp(signature: Hash, classes: IntArray, salt: IntArray, what: Hash) -> None:
    """Add a hash of the multiset of ``what`` at every place to each class there."""
    np.add.at(signature, classes, mix(mix(what) + (_unsigned(salt) << np.uint64(32))))


def _unsigned(values: IntArray) -> Hash:
    return values.astype(np.uint64)


def _ranks(classes: IntArray) -> Hash:
    """Which of the labels of its class each label is, in order of creation."""
    return _unsigned(occurrences(classes))


@dataclass(frozen=True, slots=True)
class _Keys:
    """What classes must share to be in one group, by class."""

    kind: IntArray
    family: Hash  # or the block, for classes that only move inside their own
    whole: Hash  # a hash of all of it


SIMPLE, FIXED, BLOCKS, INSIDE = range(4)  # FIXED: as SIMPLE, but nothing moves


def _keys(
    classes: IntArray, signature: Hash, pinned: npt.NDArray[np.bool_], unit: IntArray
) -> _Keys:
    inside = np.flatnonzero(unit >= 0)
    total, stuck = np.zeros(len(classes), np.uint64), np.zeros(len(classes), bool)
    np.add.at(total, unit[inside], mix(signature[inside]))
    np.logical_or.at(stuck, unit[inside], pinned[inside])
    kind = np.where(pinned, FIXED, SIMPLE)
    free = inside[~pinned[inside]]
    kind[free] = np.where(stuck[unit[free]], INSIDE, BLOCKS)
    family = np.zeros(len(classes), np.uint64)
    family[free] = np.where(stuck[unit[free]], unit[free].astype(np.uint64), total[unit[free]])
    return _Keys(kind, family, mix(signature + mix(mix(family) + _unsigned(kind))))


def _collapsed(classes: IntArray) -> IntArray:
    """Size one along the dims on which tied labels turned out to be one class."""
    for dim in range(classes.ndim):
        first = classes[(slice(None),) * dim + (slice(0, 1),)]
        if classes.shape[dim] > 1 and (classes == first).all():
            classes = first
    return classes.copy()  # a part would keep the whole


class _Builder:
    """Collects classes into groups, in order of first appearance."""

    def __init__(
        self,
        facts: Facts,
        classes: IntArray,
        pinned: npt.NDArray[np.bool_],
        kernel: npt.NDArray[np.bool_],
        keys: _Keys,
        units: Units,
    ) -> None:
        self.facts, self.classes, self.pinned, self.kernel = facts, classes, pinned, kernel
        self.keys, self.unit, self.held = keys, units.of, units.held
        self.group = np.full(facts.count, -1, np.int64)
        self.channel = np.full(facts.count, -1, np.int64)
        self.first = np.full(facts.count, facts.count, np.int64)
        np.minimum.at(self.first, classes, np.arange(facts.count))

    def build(self) -> Grouping:
        families: dict[int, int] = {}
        movable: list[Group] = []
        fixed: list[Group] = []
        for number, members in enumerate(self._collect()):
            blocks = self._arrange(number, members, families)
            group = Group(GroupId(number), len(members), (), blocks)
            (fixed if self.pinned[members[0]] else movable).append(group)
        return self._finish(movable, fixed)

    def _collect(self) -> list[IntArray]:
        """Classes with one key each."""
        present = np.arange(self.classes.max(initial=-1) + 1)
        present = present[~self.kernel[present]]
        present = present[np.argsort(self.first[present])]
        if not present.size:
            return []
        keys = self.keys.whole[present]
        _, index, key = np.unique(keys, return_index=True, return_inverse=True)
        rank = np.argsort(np.argsort(index))[key]
        order = np.argsort(rank, kind="stable")
        return np.split(present[order], np.flatnonzero(np.diff(rank[order])) + 1)

    def _arrange(self, number: int, members: IntArray, families: dict[int, int]) -> Blocks | None:
        """Number the channels of a group, block by block where it has blocks."""
        blocks = None
        if self.keys.kind[members[0]] == BLOCKS:
            units = self.unit[members]
            rank = self._unit_rank(units)
            members = members[np.lexsort((self.first[members], rank))]
            count = len(np.unique(units))
            if count > 1:
                family = families.setdefault(int(self.keys.family[members[0]]), len(families))
                blocks = Blocks(family, count, len(members) // count)
        self.group[members] = number
        self.channel[members] = np.arange(len(members))
        return blocks

    def _unit_rank(self, units: IntArray) -> IntArray:
        """Blocks in order of the first label anywhere in them: the same for a whole family."""
        first = np.full(len(self.classes), len(self.classes), np.int64)
        inside = np.flatnonzero(self.unit >= 0)
        np.minimum.at(first, self.unit[inside], self.first[inside])
        return first[units]

    def _finish(self, movable: list[Group], fixed: list[Group]) -> Grouping:
        padded = self.facts.padded
        axes = {axis: padded[labels] for axis, labels in self.facts.axes.items()}
        settled = {number: _collapsed(padded[c]) for number, c in self.facts.labels().items()}
        values = {  # one class everywhere tells no channels apart
            node: tuple(settled[id(c)] for c in coordinates if settled[id(c)].size > 1)
            for node, coordinates in self.facts.values.items()
        }
        where: dict[int, list[Axis]] = {}
        for axis, ids in axes.items():
            for number in _numbers(self.group[ids]).tolist():
                where.setdefault(number, []).append(axis)
        named = [
            Group(g.id, g.size, tuple(where.get(g.id, ())), g.blocks) for g in (*movable, *fixed)
        ]
        fixed_ids = {g.id for g in fixed}
        layout = Layout(self.group, self.channel, self._channel_axes(axes), values)
        return Grouping(
            groups=tuple(g for g in named if g.axes and g.id not in fixed_ids),
            fixed=tuple(g for g in named if g.axes and g.id in fixed_ids),
            implicit=tuple(g for g in named if not g.axes),
            bundles=self._bundles(),
            frozen=self._frozen(axes),
            layout=layout,
        )

    def _channel_axes(self, axes: Mapping[Axis, IntArray]) -> dict[Axis, IntArray]:
        return {axis: ids for axis, ids in axes.items() if not self.kernel[ids].any()}

    def _bundles(self) -> tuple[frozenset[GroupId], ...]:
        bundles = []
        for labels, _, _ in self.facts.pins:
            groups = _numbers(self.group[self.classes[labels]])
            bundles.append(frozenset(GroupId(int(g)) for g in groups if g >= 0))
        return tuple(dict.fromkeys(b for b in bundles if b))

    def _frozen(self, axes: Mapping[Axis, IntArray]) -> tuple[Frozen, ...]:
        reasons = [("", "blocks that overlap others keep their place")]
        why = np.full(self.facts.count, -1, np.int64)
        for labels, node, reason in self.facts.pins:
            own = self.classes[labels]
            why[own[why[own] < 0]] = len(reasons)
            reasons.append((node, reason))
        why[self.held[why[self.held] < 0]] = 0
        frozen = []
        for axis, ids in axes.items():
            stuck = ids[self.pinned[ids] & ~self.kernel[ids]]
            if stuck.size:
                node, reason = reasons[int(why[stuck.flat[0]])]
                frozen.append(Frozen(axis, node, reason))
        return tuple(frozen)


def _numbers(ids: IntArray) -> IntArray:
    """The different ones among small numbers from -1."""
    return np.flatnonzero(np.bincount(ids.reshape(-1) + 1)) - 1
