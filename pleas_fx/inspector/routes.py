"""Edges as lines: down, across in the gap between two rows, and down again.

All edges of a value leave on one level of a gap. Edges into a box arrive on a level each, or, if
they are many, all on one, like taps on a bar. Levels are shared where lines are apart: so lines
cross but never lie on each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pleas_fx.inspector.columns import Columns
from pleas_fx.inspector.rows import Flow

LEVEL = 11.0  # between two lines across
MARGIN = 12.0  # between lines across and boxes
APART = 14.0  # between the ends of two lines on one level
PORT, PORTS = 9.0, 7.0  # from the middle of a box to the first line from the side, and between
MANY = 6  # more lines than this arrive on one level
INSET = 12.0  # a line this far inside a box's width goes straight in

Point = tuple[float, float]
Net = tuple[str, int, int]  # ("out", box, 0) or ("in", box, the how manieth line)


@dataclass(frozen=True, slots=True)
class Across:
    """One line across: its gap (below that row), what it belongs to, and from where to where."""

    gap: int
    net: Net
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Plan:
    """An edge before the gaps have their heights: verticals at ``x``, changed in ``across``."""

    source: int
    target: int
    leave: float
    arrive: float
    across: tuple[Across, ...]


def plans(
    flow: Flow, row: Sequence[int], columns: Columns, widths: Sequence[float]
) -> tuple[Plan, ...]:
    """A way for every edge."""
    found = []
    for target, sources in enumerate(flow.reads):
        arrivals = _arrivals(target, sources, row, columns)
        found += [_plan(s, target, row, columns, widths, arrivals[s]) for s in sources]
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Arrival:
    """How a line from the side comes in: where, and on which level."""

    shift: float
    net: Net
    alone: bool


def _arrivals(
    target: int, sources: Sequence[int], row: Sequence[int], columns: Columns
) -> dict[int, _Arrival]:
    """The nearest line of a side arrives innermost and highest: then none crosses another."""
    middle = columns.boxes[target]
    away = {s: _wire(s, target, row, columns) - middle for s in sources}
    sides = [[s for s in sources if away[s] < 0], [s for s in sources if away[s] > 0]]
    alone = sum(map(len, sides)) == 1
    many = sum(map(len, sides)) > MANY
    found = {s: _Arrival(0.0, ("in", target, 0), alone) for s in sources}
    for way, side in zip((-1, 1), sides, strict=True):
        for k, source in enumerate(sorted(side, key=lambda s: abs(away[s]))):
            shift = way * (PORT + (0 if many else PORTS * k))
            number = 0 if many else 2 * k + (way > 0) + 1
            net = ("in", target, number)
            found[source] = _Arrival(shift, net, alone)
    return found


def _wire(source: int, target: int, row: Sequence[int], columns: Columns) -> float:
    """The x at which a value comes down to the row above ``target``."""
    if row[target] <= columns.trunks.get(source, row[source] + 1):
        return columns.boxes[source]
    return columns.wires[source]


def _plan(
    source: int,
    target: int,
    row: Sequence[int],
    columns: Columns,
    widths: Sequence[float],
    arrival: _Arrival,
) -> Plan:
    x, wire = columns.boxes, _wire(source, target, row, columns)
    leave, arrive = x[source], x[target]
    across: list[Across] = []
    if wire != x[source]:
        if abs(wire - x[source]) < widths[source] / 2 - INSET:
            leave = wire
        else:
            across.append(Across(row[source], ("out", source, 0), leave, wire))
    if wire != x[target]:
        if abs(wire - x[target]) < widths[target] / 2 - INSET:
            arrive = wire
        else:
            arrive += arrival.shift
            direct = row[target] == row[source] + 1
            net = ("out", source, 0) if direct and arrival.alone else arrival.net
            across.append(Across(row[target] - 1, net, wire, arrive))
    return Plan(source, target, leave, arrive, tuple(across))


def levels(plans: Iterable[Plan]) -> tuple[dict[tuple[int, Net], int], dict[int, int]]:
    """The level of every net in its gap, and how many levels each gap has."""
    extents: dict[tuple[int, Net], tuple[float, float]] = {}
    for across in (a for plan in plans for a in plan.across):
        key = across.gap, across.net
        ends = (across.start, across.end, *extents.get(key, ()))
        extents[key] = min(ends), max(ends)
    taken: dict[int, list[list[tuple[float, float]]]] = {}
    found: dict[tuple[int, Net], int] = {}
    # What leaves comes above what arrives; of what arrives, the nearest comes first.
    order = sorted(extents, key=lambda k: (k[0], k[1][0] == "in", k[1][2], extents[k], k[1][1]))
    for key in order:
        found[key] = _free_level(taken.setdefault(key[0], []), extents[key])
    return found, {gap: len(used) for gap, used in taken.items()}


def _free_level(taken: list[list[tuple[float, float]]], extent: tuple[float, float]) -> int:
    low, high = extent[0] - APART, extent[1] + APART
    for level, used in enumerate(taken):
        if all(high <= a or b <= low for a, b in used):
            used.append(extent)
            return level
    taken.append([extent])
    return len(taken) - 1


def points(
    plan: Plan, start: float, end: float, heights: Mapping[tuple[int, Net], float]
) -> tuple[Point, ...]:
    """The corners of an edge from the bottom of its source to the top of its target."""
    found = [(plan.leave, start)]
    for across in plan.across:
        y = heights[across.gap, across.net]
        found += [(across.start, y), (across.end, y)]
    return (*found, (plan.arrive, end))
