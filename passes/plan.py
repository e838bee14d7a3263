"""Decide for every channel whether it is merged, kept or dropped (DESIGN section 5).

Per decision unit (a group, a block family, or groups that must stay whole together) selection
paths with several prices for merging give options; one Lagrangian mix over all of them meets the
budget.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from passes._problems import problems
from passes.match import families
from passes.observe import Statistics, planned_groups
from pleas_fx.algebra.selection import MERGED, WIDE, Path, Problem, select, select_all
from pleas_fx.costs import CostModel
from pleas_fx.ir import (
    FloatArray,
    Group,
    GroupId,
    GroupPlan,
    IntArray,
    Lane,
    Matching,
    Membership,
    Plan,
    Program,
    Symmetry,
    everyone,
    joint,
    members,
    only,
)
from pleas_fx.lanes import lane_of, whole_lane, without_others
from pleas_fx.options import ALL_MERGED, APART, STEPS, Decision, Option, allocate

PRICES = ((1.0, 1.0), (1.5, 1.0), (math.inf, 1.0), (1.0, math.inf))
SINGLES_ONLY = ((math.inf, 1.0),)
MERGED_ONLY = ((1.0, math.inf),)
ALL_APART: tuple[tuple[float, float], ...] = ()  # nothing to choose: every channel is kept
MIXABLE = 1024  # channels beyond which a group is all pairs or all singles
SMALLEST = 2  # channels of a lane: a single channel carries no labels


@dataclass(frozen=True, slots=True)
class Constraints:
    """What the graph and the heads demand of a plan."""

    whole: tuple[frozenset[GroupId], ...]  # sets of groups that are all merged or all apart
    outputs: Mapping[GroupId, tuple[Lane, ...]]  # decided by the heads


@dataclass(frozen=True, slots=True)
class Menu:
    """Everything a plan can choose from; budgets are met from it without new statistics."""

    decisions: tuple[Decision, ...]
    groups: tuple[Group, ...]
    memberships: tuple[Membership, ...]
    matching: Matching
    sizes: Mapping[GroupId, tuple[int, ...]]  # channels per source
    outputs: Mapping[GroupId, tuple[Lane, ...]]
    kept: tuple[int, ...]  # the sources that slots stand for
    weights: Mapping[GroupId, float] = field(default_factory=dict)  # of groups' errors; none: 1

    @property
    def sources(self) -> int:
        return len(self.memberships) - 1

    @property
    def widest(self) -> int:
        """How many sources there can be side by side."""
        return len(self.kept)


def menu(
    programs: Sequence[Program],
    symmetries: Sequence[Symmetry],
    statistics: Statistics | None,
    matching: Matching,
    constraints: Constraints,
    *,
    prices: Sequence[tuple[float, float]] = PRICES,
    widest: float = math.inf,
    known: Menu | None = None,
    kept: Sequence[int] | None = None,
    emphasis: tuple[float, ...] = (),
) -> Menu:
    """The options of every decision, from cached statistics.

    ``widest``: a width that no group will exceed, where that is known.
    ``known``: an earlier menu of the same statistics and prices, whose free decisions are kept.
    ``kept``: no other source gets any slot; ``prices`` don't matter where it is one.
    ``emphasis``: how often every source's relative error counts; none: once each.
    """
    sources = len(programs)
    some = tuple(range(sources)) if kept is None else tuple(kept)
    outputs = {
        g: tuple(without_others(lane, some) for lane in lanes)
        for g, lanes in constraints.outputs.items()
    }
    if len(some) == 1:
        prices = SINGLES_ONLY
    read = _Reader(programs, symmetries, statistics, matching, some, emphasis)
    merged = joint(some) if len(some) > 1 else everyone(sources)  # never two of one membership
    memberships = (merged, *(only(s) for s in range(sources)))
    groups = planned_groups(symmetries[0])
    decisions: list[Decision] = []
    known_free = {d.groups: d for d in known.decisions if d.paths} if known else {}
    whole = _closure(constraints.whole, groups)
    together = {g for bundle in whole for g in bundle}
    for family in families(groups):
        ids = {g.id for g in family}
        if ids & outputs.keys() or ids & together:
            continue
        earlier = known_free.get(tuple(g.id for g in family))
        decisions.append(earlier or _free(read, family, prices, widest))
    for bundle in whole:
        if bundle & outputs.keys():
            continue
        own = [g for g in groups if g.id in bundle]
        decisions.append(_whole(read, own, prices))
    for group, lanes in outputs.items():
        decisions.append(_given(group, lanes, memberships, symmetries))
    sizes = {g.id: tuple(int((s.layout.group == g.id).sum()) for s in symmetries) for g in groups}
    return Menu(tuple(decisions), groups, memberships, matching, sizes, outputs, some)


def _closure(
    bundles: Sequence[frozenset[GroupId]], groups: Sequence[Group]
) -> list[frozenset[GroupId]]:
    """Overlapping sets joined; block families as wholes; fixed groups each at least alone."""
    sets = [set(b) for b in bundles]
    sets += [{g.id for g in family} for family in families(groups) if len(family) > 1]
    merged: list[set[GroupId]] = []
    flagged = {g for b in bundles for g in b}
    for current in sets:
        overlapping = [m for m in merged if m & current]
        for m in overlapping:
            merged.remove(m)
            current = current | m
        merged.append(current)
    return [frozenset(m) for m in merged if m & flagged]


def choose(menu: Menu, model: CostModel, budget: float) -> tuple[Plan, float]:
    """The plan with the least predicted error whose cost is within ``budget``."""
    row = {g.id: k for k, g in enumerate(menu.groups)}
    rows = [[row[g] for g in d.groups] for d in menu.decisions]
    shape = (len(menu.groups), len(menu.memberships))
    weights = [menu.weights.get(d.groups[0], 1.0) for d in menu.decisions]
    choice, cost = allocate(menu.decisions, model, rows, budget, shape, weights)
    return to_plan(menu, choice), cost


def merged_only(menu: Menu) -> Menu | None:
    """The same without what keeps channels apart; None where there must be some, or there is none.

    What has no choice stays as it is.
    """
    decisions = []
    for decision in menu.decisions:
        options = tuple(o for o in decision.options if not o.lanes[1:].any())
        if not options and len(decision.options) > 1:
            return None
        decisions.append(replace(decision, options=options or decision.options))
    pairs = zip(decisions, menu.decisions, strict=True)
    if all(len(fewer.options) == len(own.options) for fewer, own in pairs):
        return None
    return replace(menu, decisions=tuple(decisions))


def uniform(menu: Menu, widths: Mapping[GroupId, float] | float) -> Plan:
    """Every group at its own width: the best option with no more slots than that."""
    choice = []
    for decision in menu.decisions:
        asked = (
            widths
            if isinstance(widths, float)
            else max(
                (widths[g] for g in decision.groups if g in widths), default=float(menu.widest)
            )
        )
        fitting = [k for k, o in enumerate(decision.options) if o.lanes.sum() <= asked + 1e-9]
        if not fitting:
            fitting = [int(np.argmin([o.lanes.sum() for o in decision.options]))]
        choice.append(min(fitting, key=lambda k: _rank(decision.options[k], asked, menu)))
    return to_plan(menu, choice)


def _rank(option: Option, asked: float, menu: Menu) -> tuple[float, float, float]:
    """Least error first; on ties nothing dropped, then few slots; at full width all apart."""
    if asked >= menu.widest and option.path == APART:
        return (-1.0, 0.0, 0.0)
    kept = float(option.lanes[0] * menu.sources + option.lanes[1:].sum())
    return (round(option.error, 6), -kept, float(option.lanes.sum()))


def to_plan(menu: Menu, choice: Sequence[int]) -> Plan:
    """Slots from options."""
    plans: list[GroupPlan] = []
    by_id = {g.id: g for g in menu.groups}
    total = 0.0
    for decision, picked in zip(menu.decisions, choice, strict=True):
        option = decision.options[picked]
        total += option.error
        for gid in decision.groups:
            lanes = menu.outputs.get(gid) or _lanes(menu, decision, option, by_id[gid])
            plans.append(_group_plan(menu, by_id[gid], lanes, option.error))
    plans.sort(key=lambda p: p.group)
    return Plan(tuple(plans), menu.sources, total)


def plan_of_lanes(menu: Menu, lanes: Mapping[GroupId, tuple[Lane, ...]]) -> Plan:
    """A plan from lanes that were decided elsewhere; its error isn't predicted."""
    plans = [_group_plan(menu, g, lanes[g.id], float("nan")) for g in menu.groups]
    return Plan(tuple(sorted(plans, key=lambda p: p.group)), menu.sources)


def _group_plan(menu: Menu, group: Group, lanes: tuple[Lane, ...], error: float) -> GroupPlan:
    similarity = menu.matching.similarity[group.id]
    merged = [lane.channels[:, 0] for lane in lanes if len(members(lane.membership)) > 1]
    own = np.concatenate(merged) if merged else np.zeros(0, np.int64)
    own = own[(own >= 0) & (own < len(similarity))]
    mean = float(similarity[own].mean()) if len(own) else float("nan")
    sizes = menu.sizes[group.id]
    return GroupPlan(group.id, group.size, lanes, mean, error, menu.sources, sizes)


def _lanes(menu: Menu, decision: Decision, option: Option, group: Group) -> tuple[Lane, ...]:
    """The lanes of one group of a decision, slots in the order of the first member's channels."""
    partner = menu.matching.partner[group.id]
    if option.path == APART:
        kept = [s for s in range(menu.sources) if option.lanes[1 + s]]
        return tuple(whole_lane(s, menu.sizes[group.id][s], menu.sources) for s in kept)
    per_unit = group.size // max(decision.units, 1) if decision.units else 1
    if option.path == ALL_MERGED:
        return (lane_of(menu.memberships[0], partner, menu.sources),)
    path = decision.paths[option.path]
    kind, unit = path.kind[: option.length], path.unit[: option.length]
    lanes = []
    for k, membership in enumerate(menu.memberships):
        units = np.sort(unit[kind == (MERGED if k == 0 else k - 1)])
        slots = (units[:, None] * per_unit + np.arange(per_unit)).reshape(-1)
        if len(slots):
            lanes.append(lane_of(membership, partner[:, slots], menu.sources))
    return tuple(lanes)


@dataclass(frozen=True, slots=True)
class _Reader:
    """Makes the selection problems: what the consumers of groups read."""

    programs: Sequence[Program]
    symmetries: Sequence[Symmetry]
    statistics: Statistics | None
    matching: Matching
    kept: tuple[int, ...]
    emphasis: tuple[float, ...]

    @property
    def apart(self) -> FloatArray:
        """Every channel of every source that takes part, in slots of its own."""
        return np.array([0.0] + [float(s in self.kept) for s in range(len(self.programs))])

    @property
    def merged(self) -> FloatArray:
        return np.array([1.0] + [0.0] * len(self.programs))

    @property
    def counts(self) -> tuple[float, ...]:
        """How often the errors of the sources that take part do."""
        return tuple(self.emphasis[s] for s in self.kept) if self.emphasis else ()

    def problems(self, family: Sequence[Group]) -> tuple[Problem, ...]:
        found = problems(self.programs, self.symmetries, self.statistics, self.matching, family)
        return tuple(part.of(self.kept) for part in found)

    def paths(
        self, family: Sequence[Group], prices: Sequence[tuple[float, float]], limit: int
    ) -> tuple[Path, ...]:
        """Selections, with the numbers of the sources that take part."""
        found = select_all(self.problems(family), prices, limit=limit, emphasis=self.counts)
        number = np.array([*self.kept, MERGED])  # MERGED is the last one, -1
        return tuple(replace(p, kind=number[p.kind]) for p in found)


def _free(
    read: _Reader,
    family: Sequence[Group],
    prices: Sequence[tuple[float, float]],
    widest: float,
) -> Decision:
    """Any selection of channels (of blocks, in a block family)."""
    prices = _affordable(prices, max(g.size for g in family))
    sources, ids = len(read.programs), tuple(g.id for g in family)
    units = family[0].blocks.count if family[0].blocks else family[0].size
    if not prices:
        return Decision(ids, (Option(read.apart, 0.0, APART, 0),), (), units)
    limit = math.ceil(units * max(min(widest, sources), 1.0))  # all merged is always an option
    paths = read.paths(family, prices, limit)
    inner = min(g.size for g in family) // units
    options = [
        option
        for k, path in enumerate(paths)
        for option in _path_options(path, k, units, inner, sources, read.kept)
    ]
    if any(math.isfinite(s) for _, s in prices):
        options.append(Option(read.apart, 0.0, APART, 0))
    if any(math.isfinite(m) and not math.isfinite(s) for m, s in prices):
        options.append(Option(read.merged, _merged_error(paths, prices), ALL_MERGED, 0))
    return Decision(ids, tuple(options), paths, units)


def _affordable(prices: Sequence[tuple[float, float]], size: int) -> Sequence[tuple[float, float]]:
    """Fewer prices of mixing for wide groups: a path of both kinds costs four of one kind."""
    if size <= WIDE:
        return prices
    pure = [pair for pair in prices if not all(map(math.isfinite, pair))]
    mixing = [pair for pair in prices if pair not in pure]
    kept = mixing[-1:] if size <= MIXABLE else []
    return (*kept, *pure) or prices


def _merged_error(paths: Sequence[Path], prices: Sequence[tuple[float, float]]) -> float:
    return float(
        min(p.error[-1] for p, (_, s) in zip(paths, prices, strict=True) if not math.isfinite(s))
    )


def _path_options(
    path: Path, index: int, units: int, inner: int, sources: int, kept: tuple[int, ...]
) -> list[Option]:
    """Prefixes of a path; ``inner``: channels of a unit in the family's smallest group."""
    kinds = np.arange(-1, sources)
    running = np.cumsum(path.kind[:, None] == kinds[None, :], axis=0)
    lengths = np.unique(np.linspace(min(1, len(path)), len(path), STEPS).round().astype(int))
    options = []
    for length in lengths[lengths > 0]:
        counts = running[length - 1]
        if _allowed(counts * inner, kept):
            options.append(Option(counts / units, float(path.error[length]), index, int(length)))
    return options


def _allowed(channels: IntArray, kept: tuple[int, ...]) -> bool:
    """No lane of a single channel, and something to read for every source that takes part."""
    readable = channels[0] + channels[1:]
    return bool((channels != SMALLEST - 1).all() and (readable[list(kept)] > 0).all())


def _whole(
    read: _Reader, groups: Sequence[Group], prices: Sequence[tuple[float, float]]
) -> Decision:
    """All merged or all apart."""
    ids = tuple(g.id for g in groups)
    apart = Option(read.apart, 0.0, APART, 0)
    if not prices or len(read.kept) == 1:
        return Decision(ids, (apart,))
    error = 0.0
    for family in families(groups):
        parts = read.problems(family)
        path = select(
            parts,
            merged_price=1.0,
            single_price=math.inf,
            limit=parts[0].units,
            emphasis=read.counts,
        )
        error += float(path.error[-1])
    options = []
    if any(math.isfinite(s) for _, s in prices):
        options.append(apart)
    if any(math.isfinite(m) for m, _ in prices):
        options.append(Option(read.merged, error, ALL_MERGED, 0))
    return Decision(ids, tuple(options))


def _given(
    group: GroupId,
    lanes: tuple[Lane, ...],
    memberships: Sequence[Membership],
    symmetries: Sequence[Symmetry],
) -> Decision:
    size = int((symmetries[0].layout.group == group).sum())
    share = {lane.membership: len(lane) / size for lane in lanes}
    option = Option(np.array([share.get(S, 0.0) for S in memberships]), 0.0, APART, 0)
    return Decision((group,), (option,))
