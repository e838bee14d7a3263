"""What the report page shows, as text and percentages: the template only places it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from pleas_fx.ir import Frozen, Group, GroupPlan, LayerFit, Report, letters, members
from pleas_fx.report.tables import plain
from pleas_fx.result import MergeResult

DASH = "–"
LONGEST_NAME = 32  # beside a bar; the end of a path says more than its beginning


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a stacked bar."""

    label: str
    count: int
    percent: float
    style: str


@dataclass(frozen=True, slots=True)
class GroupRow:
    """A group in the chart and in the table."""

    name: str
    short: str
    hint: str
    parts: tuple[Part, ...]
    mark: float  # where one source's width lies on the bar, percent
    size: int
    slots: int
    width: str
    merged: int
    kept: str
    dropped: str
    similarity: str
    error: str


@dataclass(frozen=True, slots=True)
class LayerRow:
    """A layer in the table."""

    name: str
    residual: str
    bar: float
    style: str
    rows: str
    unknowns: str
    rank: str
    condition: str


@dataclass(frozen=True, slots=True)
class FrozenRow:
    """Axes that one node froze for one reason."""

    reason: str
    node: str
    axes: tuple[str, ...]


def number(value: float | None, digits: int = 3) -> str:
    """A short figure; a dash for what is missing or not a number."""
    if value is None or not math.isfinite(value):
        return DASH
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.1e}"
    return f"{value:.{digits}g}"


def amount(value: float) -> str:
    """A large count with a unit: 11.7 M."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return str(int(value))


def percent(value: float, digits: int = 1) -> str:
    """A share; a dash when it isn't a number."""
    return f"{100 * value:.{digits}f} %" if math.isfinite(value) else DASH


def source_names(result: MergeResult) -> list[str]:
    """What the recipe calls the sources, or their letters."""
    count = result.plan.sources or len(result.report.sources)
    named = result.recipe.get("sources") or result.recipe.get("models")
    if isinstance(named, list) and len(named) == count:
        return [str(name) for name in named]
    return [f"source {letter(s)}" for s in range(count)]


def letter(source: int) -> str:
    """``A`` for source 0."""
    return letters(1 << source)  # type: ignore[arg-type]


# -- groups ---------------------------------------------------------------------------------------


def group_rows(result: MergeResult) -> list[GroupRow]:
    """One row a group, bars on a common scale relative to the groups' sizes."""
    symmetry = result.symmetry
    known = {g.id: g for g in (*symmetry.groups, *symmetry.fixed, *symmetry.implicit)}
    longest = max((_length(plan) for plan in result.plan.groups), default=1.0)
    longest = max(longest, 1.0)
    return [_group_row(plan, known.get(plan.group), longest) for plan in result.plan.groups]


def _length(plan: GroupPlan) -> float:
    """Slots and dropped channels, relative to one source."""
    dropped = sum(len(own) for own in plan.dropped)
    return (plan.slots + dropped) / plan.size if plan.size else 0.0


def _group_row(plan: GroupPlan, group: Group | None, longest: float) -> GroupRow:
    name, hint = _group_name(plan, group)
    dropped = [len(own) for own in plan.dropped]
    kept = [len(own) for own in plan.kept]
    return GroupRow(
        name=name,
        short=name if len(name) <= LONGEST_NAME else "…" + name[1 - LONGEST_NAME :],
        hint=hint,
        parts=_parts(plan, longest),
        mark=100.0 / longest,
        size=plan.size,
        slots=plan.slots,
        width=f"{plan.width:.2f}×" if plan.size else DASH,
        merged=len(plan.merged),
        kept=_per_source(kept),
        dropped=_per_source(dropped),
        similarity=number(plan.similarity),
        error=number(plan.predicted_error),
    )


def _per_source(counts: Sequence[int]) -> str:
    return " · ".join(f"{letter(s)} {n}" for s, n in enumerate(counts)) if any(counts) else "0"


def _group_name(plan: GroupPlan, group: Group | None) -> tuple[str, str]:
    if group is None or not group.axes:
        return f"g{plan.group}", ""
    owners = list(dict.fromkeys(axis.key.rpartition(".")[0] or axis.key for axis in group.axes))
    more = f" +{len(owners) - 1}" if len(owners) > 1 else ""
    return f"{owners[0]}{more}", ", ".join(owners)


def _parts(plan: GroupPlan, longest: float) -> tuple[Part, ...]:
    counts: dict[int, int] = {}
    for lane in plan.lanes:
        counts[lane.membership] = counts.get(lane.membership, 0) + len(lane)
    scale = 100.0 / (longest * plan.size) if plan.size else 0.0
    order = sorted(counts, key=lambda m: (-len(members(m)), m))  # type: ignore[arg-type]
    parts = [
        Part(letters(m), counts[m], counts[m] * scale, style(m, plan.sources))  # type: ignore[arg-type]
        for m in order
        if counts[m]
    ]
    dropped = sum(len(own) for own in plan.dropped)
    if dropped:
        parts.append(Part("dropped", dropped, dropped * scale, "dropped"))
    return tuple(parts)


def style(membership: int, sources: int) -> str:
    """The CSS class of a membership."""
    who = members(membership)  # type: ignore[arg-type]
    if len(who) == sources and sources > 1:
        return "all"
    return f"one{who[0] % 4}" if len(who) == 1 else f"some{sum(who) % 3}"


def legend(rows: Sequence[GroupRow]) -> list[Part]:
    """Every membership that occurs, with its total."""
    found: dict[str, Part] = {}
    for part in (part for row in rows for part in row.parts):
        before = found[part.label].count if part.label in found else 0
        found[part.label] = Part(part.label, before + part.count, 0.0, part.style)
    return sorted(found.values(), key=lambda p: (p.style == "dropped", -len(p.label), p.label))


# -- layers, frozen axes, totals -------------------------------------------------------------------


def layer_rows(layers: Sequence[LayerFit]) -> list[LayerRow]:
    """One row a layer, with bars relative to the largest residual."""
    largest = max((f.residual for f in layers if math.isfinite(f.residual)), default=0.0)
    return [_layer_row(layer, largest) for layer in layers]


def _rank(layer: LayerFit) -> str:
    if layer.status == "prior":
        return "exact already"
    deficient = layer.rank < layer.unknowns and layer.rows > 0
    answers = ", then for answers" if layer.status == "answers" else ""
    return f"{layer.rank:,}" + (" (deficient)" if deficient else "") + answers


def _layer_row(layer: LayerFit, largest: float) -> LayerRow:
    residual = layer.residual if math.isfinite(layer.residual) else 0.0
    return LayerRow(
        name=layer.name,
        residual=number(layer.residual),
        bar=100.0 * max(residual, 0.0) / largest if largest > 0 else 0.0,
        style="good" if residual < 0.1 else "fair" if residual < 0.4 else "poor",
        rows=f"{layer.rows:,}",
        unknowns=f"{layer.unknowns:,}",
        rank=_rank(layer),
        condition=number(layer.condition),
    )


def frozen_rows(frozen: Sequence[Frozen]) -> list[FrozenRow]:
    """Axes by node and reason."""
    found: dict[tuple[str, str], list[str]] = {}
    for f in frozen:
        found.setdefault((f.reason, f.node), []).append(f"{f.axis.key}.{f.axis.dim}")
    return [FrozenRow(reason, node, tuple(axes)) for (reason, node), axes in found.items()]


def totals(report: Report) -> list[Mapping[str, Any]]:
    """Parameters and FLOPs: merged, of one source, of all sources."""
    rows: list[Mapping[str, Any]] = []
    for name, what in (("Parameters", "params"), ("FLOPs per example", "flops")):
        own = int(getattr(report.merged, what))
        each = [int(getattr(count, what)) for count in report.sources]
        total, one = sum(each), sum(each) / len(each) if each else 0
        rows.append(
            {
                "name": name,
                "value": amount(own),
                "of_one": f"{own / one:.2f}×" if one else DASH,
                "of_all": f"{own / total:.2f}×" if total else DASH,
                "bar": 100.0 * min(own / total, 1.0) if total else 0.0,
                "mark": 100.0 * one / total if total else 0.0,
                "each": [f"{letter(s)} {amount(n)}" for s, n in enumerate(each)],
            }
        )
    return rows


def second_rows(seconds: Mapping[str, float]) -> list[Mapping[str, Any]]:
    """Seconds per pass, with bars relative to the longest."""
    longest = max((s for s in seconds.values() if math.isfinite(s)), default=0.0)
    return [
        {
            "name": name,
            "seconds": f"{number(s)} s",
            "bar": 100.0 * s / longest if longest > 0 and math.isfinite(s) else 0.0,
        }
        for name, s in seconds.items()
    ]


def recipe_text(recipe: Mapping[str, Any]) -> str:
    """The recipe as YAML."""
    text: str = yaml.safe_dump(plain(dict(recipe)), sort_keys=False, allow_unicode=True)
    return text
