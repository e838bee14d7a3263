"""What the page's tables and bars show: rows of values, no markup."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pleas_fx.ir import (
    Count,
    Frozen,
    Group,
    GroupId,
    GroupPlan,
    LayerFit,
    Membership,
    Plan,
    Symmetry,
    everyone,
    letters,
    members,
)
from pleas_fx.report import figures
from pleas_fx.report.figures import Part
from pleas_fx.result import MergeResult

COLOURS = 8  # memberships with a colour of their own; the others share the last one
NAMED_BY = ("models", "sources")  # recipe entries that may name the sources


@dataclass(frozen=True, slots=True)
class SizeRow:
    """One network in the table of sizes."""

    style: str
    letter: str
    name: str
    count: Count
    params: float  # length of its bar
    flops: float


@dataclass(frozen=True, slots=True)
class GroupRow:
    """One group: its bar and its figures."""

    label: str
    where: str
    axes: str
    plan: GroupPlan
    parts: tuple[Part, ...]
    merged: int
    kept: tuple[int, ...]
    dropped: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One fitted layer and the length of its residual's bar."""

    fit: LayerFit
    bar: float


@dataclass(frozen=True, slots=True)
class FrozenRow:
    """Axes that one node froze for one reason."""

    node: str
    reason: str
    axes: tuple[str, ...]


# -- sources and sizes -------------------------------------------------------------------------


def source_names(result: MergeResult) -> tuple[str, ...]:
    """What the recipe calls the sources, or their letters."""
    count = len(result.report.sources)
    for key in NAMED_BY:
        given = result.recipe.get(key)
        if isinstance(given, list) and len(given) == count:
            return tuple(str(name) for name in given)
    return tuple(f"source {letters(Membership(1 << s))}" for s in range(count))


def size_rows(result: MergeResult) -> tuple[SizeRow, ...]:
    """The sources, then the merged network, with bars on one scale."""
    counts = (*result.report.sources, result.report.merged)
    names = (*source_names(result), "merged")
    last = len(counts) - 1
    most = Count(max(c.params for c in counts), max(c.flops for c in counts))
    return tuple(
        SizeRow(
            style="whole" if s == last else "source",
            letter="" if s == last else letters(Membership(1 << s)),
            name=name,
            count=count,
            params=figures.share(count.params, most.params),
            flops=figures.share(count.flops, most.flops),
        )
        for s, (name, count) in enumerate(zip(names, counts, strict=True))
    )


def mean_count(counts: Sequence[Count]) -> tuple[float, float]:
    """Parameters and FLOPs of the average source; NaN without sources."""
    if not counts:
        return math.nan, math.nan
    params = sum(c.params for c in counts) / len(counts)
    flops = sum(c.flops for c in counts) / len(counts)
    return params or math.nan, flops or math.nan


# -- groups ------------------------------------------------------------------------------------


def lane_styles(plan: Plan) -> dict[Membership, str]:
    """A CSS class for every membership that occurs or may be expected, most shared first."""
    singles = {Membership(1 << s) for s in range(plan.sources)}
    found = {lane.membership for group in plan.groups for lane in group.lanes}
    every = {everyone(plan.sources), *singles, *found}
    ordered = sorted(every, key=lambda m: (-len(members(m)), m))
    return {m: f"m{min(place, COLOURS - 1)}" for place, m in enumerate(ordered)}


def legend(styles: dict[Membership, str], sources: int) -> list[tuple[str, str]]:
    """(style, text) of every colour; memberships that share one are listed together."""
    texts: dict[str, list[str]] = {}
    for membership, style in styles.items():
        texts.setdefault(style, []).append(_lane_text(membership, sources))
    entries = [(style, " / ".join(names[:3])) for style, names in texts.items()]
    return [*entries, ("gone", "dropped")]


def _lane_text(membership: Membership, sources: int) -> str:
    name = letters(membership)
    if len(members(membership)) == 1:
        return f"{name} alone"
    return f"{name} merged" if membership == everyone(sources) else f"{name} merged in part"


def full_width(plan: Plan) -> float:
    """The width that fills a bar, in channels of one source."""
    return max((_extent(group) for group in plan.groups), default=1.0)


def _extent(group: GroupPlan) -> float:
    dropped = sum(len(channels) for channels in group.dropped)
    return max((group.slots + dropped) / max(group.size, 1), 1.0)


def all_groups(symmetry: Symmetry) -> tuple[Group, ...]:
    return (*symmetry.groups, *symmetry.fixed, *symmetry.implicit)


def group_rows(
    plan: Plan, groups: Iterable[Group], styles: dict[Membership, str]
) -> tuple[GroupRow, ...]:
    """Every group's figures; bars share one scale, in channels of one source."""
    known = {group.id: group for group in groups}
    full = full_width(plan)
    return tuple(_group_row(group, known, styles, full) for group in plan.groups)


def _group_row(
    plan: GroupPlan, known: dict[GroupId, Group], styles: dict[Membership, str], full: float
) -> GroupRow:
    group = known.get(plan.group)
    axes = [] if group is None else [f"{key}[{dim}]" for key, dim in group.axes]
    dropped = tuple(len(channels) for channels in plan.dropped)
    ordered = sorted(plan.lanes, key=lambda lane: styles[lane.membership])
    amounts = [
        (styles[lane.membership], _part_label(lane.membership, len(lane)), float(len(lane)))
        for lane in ordered
    ]
    amounts.append(("gone", f"{sum(dropped)} dropped", float(sum(dropped))))
    return GroupRow(
        label=f"g{plan.group}",
        where=axes[0].rpartition("[")[0].rpartition(".")[0] if axes else "",
        axes=", ".join(axes),
        plan=plan,
        parts=figures.stacked(amounts, full * max(plan.size, 1)),
        merged=len(plan.merged),
        kept=tuple(len(channels) for channels in plan.kept),
        dropped=dropped,
    )


def _part_label(membership: Membership, size: int) -> str:
    return f"{size} × {letters(membership)}"


# -- layers, frozen axes -----------------------------------------------------------------------


def layer_rows(layers: Sequence[LayerFit]) -> tuple[LayerRow, ...]:
    """Every fitted layer, with a bar relative to the largest residual."""
    largest = _most(fit.residual for fit in layers)
    return tuple(LayerRow(fit, figures.share(fit.residual, largest)) for fit in layers)


def frozen_rows(frozen: Iterable[Frozen]) -> tuple[FrozenRow, ...]:
    """Frozen axes by the node and the reason they share."""
    rows: dict[tuple[str, str], list[str]] = {}
    for entry in frozen:
        axes = rows.setdefault((entry.node, entry.reason), [])
        axes.append(f"{entry.axis.key}[{entry.axis.dim}]")
    return tuple(FrozenRow(node, reason, tuple(axes)) for (node, reason), axes in rows.items())


def pass_rows(seconds: Mapping[str, float]) -> tuple[tuple[str, float, float], ...]:
    """(pass, seconds, length of its bar)."""
    largest = _most(seconds.values())
    return tuple((name, s, figures.share(s, largest)) for name, s in seconds.items())


def _most(values: Iterable[float]) -> float:
    return max((value for value in values if math.isfinite(value)), default=0.0)
