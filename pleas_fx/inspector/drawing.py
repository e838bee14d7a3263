"""The network as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from pleas_fx.inspector.layout import Layout, Placed, Route
from pleas_fx.inspector.markup import group, number, tag
from pleas_fx.inspector.routes import Point
from pleas_fx.inspector.view import UNTIED, Box, FrozenView, GroupView, Share, Shares, View

STRIP, RADIUS = 13.0, 7.0
THIN, THICK, CABLE = 2.4, 5.0, 9.0  # strokes: a group, a residual stream, several groups together
STRANDS = 8
LETTER, SMALL_LETTER = 7.3, 6.2  # of the two monospaced sizes
PADDING = 9.0


@dataclass(frozen=True, slots=True)
class Legend:
    """What the keys of the view stand for."""

    groups: Mapping[str, GroupView]
    frozen: Mapping[str, FrozenView]

    def style(self, key: str) -> str:
        """The CSS class of a key."""
        if key in self.groups:
            return f"c{self.groups[key].colour}"
        return "fz" if key in self.frozen else "un"

    def trunk(self, key: str) -> bool:
        return key in self.groups and self.groups[key].trunk

    def name(self, key: str) -> str:
        """A key in words."""
        if key in self.frozen:
            node = f" (node {self.frozen[key].node})" if self.frozen[key].node else ""
            return f"frozen: {self.frozen[key].reason}{node}"
        return self.groups[key].name if key in self.groups else "no group"


def legend_of(view: View) -> Legend:
    """Groups and frozen causes by key."""
    return Legend({g.key: g for g in view.groups}, {f.key: f for f in view.frozen})


def draw(view: View, layout: Layout) -> Markup:
    """The picture: edges below, boxes above."""
    legend = legend_of(view)
    boxes = [
        _box(legend, k, box, placed)
        for k, (box, placed) in enumerate(zip(view.boxes, layout.boxes, strict=True))
    ]
    return tag(
        "svg",
        HATCH,
        group(_wires(legend, view, layout), class_="edges"),
        group(boxes, class_="boxes"),
        id="net",
        role="group",
        aria_label="The network from top to bottom, each permutation group in its colour",
        viewBox=f"0 0 {number(layout.width)} {number(layout.height)}",
        width=layout.width,
        height=layout.height,
        style=f"--natural: {number(layout.width)}px",
    )


HATCH = Markup(
    '<defs><pattern id="hatch" width="5" height="5" patternUnits="userSpaceOnUse" '
    'patternTransform="rotate(45)"><rect class="hatch-ground" width="5" height="5"></rect>'
    '<rect class="hatch-line" width="1.6" height="5"></rect></pattern></defs>'
)


# -- edges ----------------------------------------------------------------------------------------


def _wires(legend: Legend, view: View, layout: Layout) -> list[Markup]:
    """One element a value, with all its edges: where they lie on each other they are one line."""
    edges: dict[tuple[int, Shares], list[Route]] = {}
    for edge, route in zip(view.edges, layout.routes, strict=True):
        edges.setdefault((edge.source, edge.shares), []).append(route)
    dots: dict[tuple[int, Shares], list[Point]] = {}
    for k, point in layout.junctions:
        dots.setdefault((view.edges[k].source, view.edges[k].shares), []).append(point)
    found = [
        (
            any(legend.trunk(s.key) for s in value[1]),
            _wire(legend, value[1], routes, dots.get(value, ())),
        )
        for value, routes in edges.items()
    ]
    # Wide lines last: a residual stream isn't cut by what it crosses.
    return [wire for _, wire in sorted(found, key=lambda pair: pair[0])]


def _wire(legend: Legend, shares: Shares, routes: Sequence[Route], dots: Sequence[Point]) -> Markup:
    keys = strands(shares)
    thick = len(keys) > 1 or legend.trunk(keys[0])
    width = CABLE / len(keys) if len(keys) > 1 else THICK if thick else THIN
    first = -width * (len(keys) - 1) / 2
    lines = [
        tag(
            "path",
            class_=legend.style(key),
            data_g=key if key and len(keys) > 1 else None,
            d="".join(path(route.points, first + width * k) for route in routes),
            stroke_width=number(width),
        )
        for k, key in enumerate(keys)
    ]
    style, radius = legend.style(keys[0]), 5.2 if thick else 4.0
    lines += [tag("circle", class_=style, cx=x, cy=y, r=radius) for x, y in dots]
    present = dict.fromkeys(share.key for share in shares if share.key != UNTIED)
    return group(lines, class_="e", data_g=" ".join(present))


def strands(shares: Shares) -> tuple[str, ...]:
    """The keys of the lines that an edge is drawn with, side by side; the largest if too many."""
    totals: dict[str, int] = {}
    for share in shares:
        totals[share.key] = totals.get(share.key, 0) + share.count
    shown = set(sorted(totals, key=lambda key: -totals[key])[:STRANDS])
    return tuple(key for key in totals if key in shown) or (UNTIED,)


def path(points: Sequence[Point], offset: float) -> str:
    """An orthogonal line with round corners, ``offset`` to the right of where it would be."""
    corners = _shifted(points, offset)
    text = [f"M{number(corners[0][0])} {number(corners[0][1])}"]
    for before, corner, after in zip(corners, corners[1:], corners[2:], strict=False):
        radius = min(RADIUS, _length(before, corner) / 2, _length(corner, after) / 2)
        enter, leave = _towards(corner, before, radius), _towards(corner, after, radius)
        text.append(f"L{number(enter[0])} {number(enter[1])}")
        text.append(
            f"Q{number(corner[0])} {number(corner[1])} {number(leave[0])} {number(leave[1])}"
        )
    text.append(f"L{number(corners[-1][0])} {number(corners[-1][1])}")
    return "".join(text)


def _shifted(points: Sequence[Point], offset: float) -> list[Point]:
    """Verticals to the right; what runs across goes up or down so that strands never cross."""
    found = []
    way = 0.0
    for (x, y), (to, _) in pairwise([*points, points[-1]]):
        if to != x:
            way = -1.0 if to > x else 1.0
        found.append((x + offset, y + offset * way if _inner(points, (x, y)) else y))
        if to == x:
            way = 0.0
    return found


def _inner(points: Sequence[Point], point: Point) -> bool:
    return point not in (points[0], points[-1])


def _length(a: Point, b: Point) -> float:
    return abs(a[0] - b[0]) + abs(a[1] - b[1])


def _towards(start: Point, end: Point, distance: float) -> Point:
    length = _length(start, end) or 1.0
    share = distance / length
    return start[0] + (end[0] - start[0]) * share, start[1] + (end[1] - start[1]) * share


# -- boxes ----------------------------------------------------------------------------------------


def _box(legend: Legend, number_: int, box: Box, at: Placed) -> Markup:
    draw_it = _layer if box.kind == "layer" else _pill
    return group(
        [tag("title", hint(legend, box)), *draw_it(legend, box, at)],
        class_=f"b {box.kind}",
        id=f"b{number_}",
        tabindex="0" if number_ == 0 else "-1",
        role="button" if box.keys else "img",
        aria_label=f"{box.name}: {box.text}",
        data_g=" ".join(box.keys),
        data_n=" ".join([*box.names, box.text]).lower(),
    )


def hint(legend: Legend, box: Box) -> str:
    """All there is to say about a box, as its tooltip."""
    lines = [f"{box.name}: {box.text}"]
    if box.shape:
        lines.append(f"result {' × '.join(map(str, box.shape))}")
    for use in box.axes:
        whose = ", ".join(legend.name(key) for key in use.keys) or "no channels"
        lines.append(f"{use.axis.key}.{use.axis.dim}: {whose}")
    if not box.axes:
        keys = dict.fromkeys(s.key for s in (*box.entering, *box.leaving))
        lines += [legend.name(key) for key in keys]
    return "\n".join(lines)


def _layer(legend: Legend, box: Box, at: Placed) -> list[Markup]:
    x, y, width = at.x, at.y, at.width
    parts = [tag("rect", class_="card", x=x, y=y, width=width, height=at.height, rx=4.0)]
    parts += _strip(legend, box.entering, (x, y, width))
    parts.append(_line("name", box.name, x + PADDING, y + STRIP + 13, width, LETTER, end=True))
    parts.append(_line("what", box.text, x + PADDING, y + STRIP + 25, width, SMALL_LETTER))
    if box.inside:
        parts += _strip(legend, box.inside, (x + 18, y + STRIP + 30, width - 36))
    parts += _strip(legend, box.leaving, (x, y + at.height - STRIP, width))
    return parts


def _pill(legend: Legend, box: Box, at: Placed) -> list[Markup]:
    keys = tuple(dict.fromkeys(s.key for s in box.leaving))
    style = legend.style(keys[0]) if len(keys) == 1 else "un"
    middle = at.y + at.height / 2 + 3.6
    text = fitted(box.text, at.width - 12, SMALL_LETTER)
    return [
        tag(
            "rect",
            class_=f"pill {style}",
            x=at.x,
            y=at.y,
            width=at.width,
            height=at.height,
            rx=at.height / 2,
        ),
        tag("text", text, class_="what", x=at.middle, y=middle, text_anchor="middle"),
    ]


def _line(
    style: str, text: str, x: float, y: float, width: float, letter: float, *, end: bool = False
) -> Markup:
    return tag("text", fitted(text, width - 2 * PADDING, letter, end=end), class_=style, x=x, y=y)


def fitted(text: str, width: float, letter: float, *, end: bool = False) -> str:
    """The text, cut where it would leave its box; the end of a path says more than its start."""
    room = int(width / letter)
    if len(text) <= room:
        return text
    return f"…{text[len(text) - room + 1 :]}" if end else f"{text[: room - 1]}…"


def _strip(legend: Legend, shares: Shares, at: tuple[float, float, float]) -> list[Markup]:
    """One side of a layer: its channels in the colours of their groups, in order."""
    x, y, width = at
    total = sum(share.count for share in shares)
    if not total:
        return [tag("rect", class_="strip un", x=x, y=y, width=width, height=STRIP)]
    parts = []
    for share in shares:
        part = width * share.count / total
        parts.append(_segment(legend, share, (x, y, part)))
        x += part
    return parts


def _segment(legend: Legend, share: Share, at: tuple[float, float, float]) -> Markup:
    x, y, width = at
    label = "frozen" if share.frozen else legend.groups[share.key].name if share.key else ""
    content = [tag("rect", x=x, y=y, width=width, height=STRIP)]
    if label and len(label) * SMALL_LETTER + 4 <= width:
        content.append(tag("text", label, x=x + width / 2, y=y + STRIP - 3.4, text_anchor="middle"))
    return group(content, class_=f"strip {legend.style(share.key)}", data_g=share.key or None)
