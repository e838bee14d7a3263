"""Where everything is drawn: a pure function from the view to coordinates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil

from pleas_fx.inspector.columns import Columns, columns
from pleas_fx.inspector.routes import (
    LEVEL,
    MANY,
    MARGIN,
    PORTS,
    Net,
    Plan,
    Point,
    levels,
    plans,
    points,
)
from pleas_fx.inspector.rows import Flow, chains, rows
from pleas_fx.inspector.view import Box, View

LAYER_WIDTH, LAYER_HEIGHT, INSIDE_HEIGHT = 226.0, 56.0, 17.0
PILL_HEIGHT, PILL_WIDTHS, LETTER = 24.0, (64.0, 226.0), 6.4
BORDER = 18.0


@dataclass(frozen=True, slots=True)
class Placed:
    """The rectangle of one box, ``x`` and ``y`` its upper left corner, and its row."""

    x: float
    y: float
    width: float
    height: float
    row: int

    @property
    def middle(self) -> float:
        return self.x + self.width / 2


@dataclass(frozen=True, slots=True)
class Route:
    """The corners of one edge, from the bottom of its source to the top of its target."""

    points: tuple[Point, ...]

    @property
    def straight(self) -> bool:
        return all(x == self.points[0][0] for x, _ in self.points)


@dataclass(frozen=True, slots=True)
class Layout:
    """Boxes and routes, in the order of the view's boxes and edges."""

    boxes: tuple[Placed, ...]
    routes: tuple[Route, ...]
    junctions: tuple[tuple[int, Point], ...]  # an edge that comes off a line which goes on
    width: float
    height: float


def size(box: Box, lines: int = 1) -> tuple[float, float]:
    """Width and height of a box into which so many lines lead; text is cut to fit, if it must."""
    if box.kind == "layer":
        return LAYER_WIDTH, LAYER_HEIGHT + (INSIDE_HEIGHT if box.inside else 0.0)
    low, high = PILL_WIDTHS
    # Even numbers: halves are exact, and sums of them end where the next thing begins.
    text = 2.0 * ceil(len(box.text) * LETTER / 2 + 12)
    ports = 44 + 2 * PORTS * (lines - 1) if lines <= MANY + 1 else 0
    return min(max(text, ports, low), high), PILL_HEIGHT


def layout(view: View) -> Layout:
    """Rows by longest path, chains in columns, edges at right angles."""
    if not view.boxes:
        return Layout((), (), (), 2 * BORDER, 2 * BORDER)
    reads: list[list[int]] = [[] for _ in view.boxes]
    for edge in view.edges:
        reads[edge.target].append(edge.source)
    flow = Flow(tuple(map(tuple, reads)))
    row = rows(flow, [box.kind == "input" for box in view.boxes])
    sizes = [size(box, len(r)) for box, r in zip(view.boxes, reads, strict=True)]
    widths = [width for width, _ in sizes]
    across = columns(flow, row, chains(flow, row), widths)
    ways = {(p.source, p.target): p for p in plans(flow, row, across, widths)}
    return _assemble(view, row, sizes, across, ways)


def _assemble(
    view: View,
    row: Sequence[int],
    sizes: Sequence[tuple[float, float]],
    across: Columns,
    ways: Mapping[tuple[int, int], Plan],
) -> Layout:
    level, counts = levels(ways.values())
    tops = _tops(row, sizes, counts)
    bottoms = _bottoms(tops, row, sizes)
    boxes = tuple(
        Placed(across.boxes[k] - w / 2 + BORDER, tops[row[k]], w, h, row[k])
        for k, (w, h) in enumerate(sizes)
    )
    heights = {key: bottoms[key[0]] + MARGIN + LEVEL * n for key, n in level.items()}
    routes = tuple(_route(ways[e.source, e.target], boxes, heights) for e in view.edges)
    ends = [b.x + b.width for b in boxes] + [x for route in routes for x, _ in route.points]
    return Layout(boxes, routes, junctions(view, routes), max(ends) + BORDER, max(bottoms) + BORDER)


def _tops(
    row: Sequence[int], sizes: Sequence[tuple[float, float]], counts: Mapping[int, int]
) -> list[float]:
    """The upper end of every row: gaps are as high as what runs across in them."""
    found = [BORDER]
    for at in range(max(row)):
        tallest = max((h for r, (_, h) in zip(row, sizes, strict=True) if r == at), default=0.0)
        gap = 2 * MARGIN + LEVEL * max(counts.get(at, 0) - 1, 0)
        found.append(found[-1] + tallest + gap)
    return found


def _bottoms(
    tops: Sequence[float], row: Sequence[int], sizes: Sequence[tuple[float, float]]
) -> list[float]:
    found = list(tops)
    for at, (_, height) in zip(row, sizes, strict=True):
        found[at] = max(found[at], tops[at] + height)
    return found


def _route(plan: Plan, boxes: Sequence[Placed], heights: Mapping[tuple[int, Net], float]) -> Route:
    source, target = boxes[plan.source], boxes[plan.target]
    corners = points(plan, source.y + source.height, target.y, heights)
    shifted = tuple((x + BORDER, y) for x, y in corners)
    return Route(tuple(dict.fromkeys(shifted)))


def junctions(view: View, routes: Sequence[Route]) -> tuple[tuple[int, Point], ...]:
    """Where an edge turns off a vertical line of the same value that goes on below."""
    reach: dict[tuple[int, float], float] = {}
    for edge, route in zip(view.edges, routes, strict=True):
        for (x, _), (to, y) in pairwise(route.points):
            if x == to:
                reach[edge.source, x] = max(reach.get((edge.source, x), y), y)
    found: dict[tuple[int, Point], int] = {}
    for k, (edge, route) in enumerate(zip(view.edges, routes, strict=True)):
        for (x, y), (to, _) in pairwise(route.points):
            if x != to and reach.get((edge.source, x), y) > y:
                found.setdefault((edge.source, (x, y)), k)
    return tuple((edge, point) for (_, point), edge in found.items())
