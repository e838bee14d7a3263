"""Where the inspector draws things: nothing overlaps, everything goes down, skips are straight."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from pleas_fx.inspector import layout
from pleas_fx.inspector.layout import Layout, Placed, Route
from pleas_fx.inspector.rows import Flow, chains, rows
from pleas_fx.inspector.view import Edge, View
from tests.inspected import every_drawing, laid_out, view_of


def overlap(a: Placed, b: Placed, gap: float) -> bool:
    """Whether two boxes are nearer to each other than ``gap``."""
    return (
        a.x < b.x + b.width + gap
        and b.x < a.x + a.width + gap
        and a.y < b.y + b.height + gap
        and b.y < a.y + a.height + gap
    )


@every_drawing
def test_boxes_keep_their_distance(name: str) -> None:
    """No two boxes touch, and all lie on the sheet."""
    found = laid_out(name)
    assert not [(a, b) for a, b in combinations(found.boxes, 2) if overlap(a, b, 8.0)]
    for box in found.boxes:
        assert box.x >= 0
        assert box.y >= 0
        assert box.x + box.width <= found.width
        assert box.y + box.height <= found.height


@every_drawing
def test_edges_go_down_from_box_to_box(name: str) -> None:
    """At right angles, from the lower side of the source to the upper side of the target."""
    found = laid_out(name)
    for edge, route in zip(view_of(name).edges, found.routes, strict=True):
        source, target = found.boxes[edge.source], found.boxes[edge.target]
        (x, y), (to, end) = route.points[0], route.points[-1]
        assert y == source.y + source.height
        assert end == target.y
        assert source.x <= x <= source.x + source.width
        assert target.x <= to <= target.x + target.width
        for (a, b), (c, d) in pairwise(route.points):
            assert d >= b
            assert a == c or b == d


def crosses(route: Route, box: Placed) -> bool:
    """Whether a line runs through a box."""
    return any(
        min(a, c) < box.x + box.width
        and box.x < max(a, c)
        and min(b, d) < box.y + box.height
        and box.y < max(b, d)
        for (a, b), (c, d) in pairwise(route.points)
    )


@every_drawing
def test_no_edge_runs_through_a_box(name: str) -> None:
    """Not even through its own: they begin and end at the sides."""
    found = laid_out(name)
    assert not [1 for r in found.routes for box in found.boxes if crosses(_solid(r), box)]


def _solid(route: Route) -> Route:
    """A line of no width never crosses anything: give verticals a little, pull in the ends."""
    first, *_, last = route.points
    inner = route.points[1:-1]
    points = ((first[0], first[1] + 0.5), *inner, (last[0], last[1] - 0.5))
    return Route(tuple((x + 0.01 * k, y) for k, (x, y) in enumerate(points)))


def test_a_line_through_a_box_is_noticed() -> None:
    """Negative control for the test above."""
    box = Placed(10.0, 10.0, 20.0, 20.0, 0)
    assert crosses(_solid(Route(((15.0, 0.0), (15.0, 50.0)))), box)
    assert not crosses(_solid(Route(((5.0, 0.0), (5.0, 50.0)))), box)


def lying(view: View, found: Layout) -> list[tuple[Edge, Edge]]:
    """Pairs of edges with neither end in common of which one lies on the other for a while."""
    pieces = [
        (edge, *sorted(((a, b), (c, d))))
        for edge, route in zip(view.edges, found.routes, strict=True)
        for (a, b), (c, d) in pairwise(route.points)
    ]
    return [
        (e, f)
        for (e, (a, b), (c, d)), (f, (p, q), (r, s)) in combinations(pieces, 2)
        if e.source != f.source and e.target != f.target
        if (a == c == p == r and max(b, q) < min(d, s))
        or (b == d == q == s and max(a, p) < min(c, r))
    ]


@every_drawing
def test_edges_never_lie_on_each_other(name: str) -> None:
    """They cross, but two values that meet nowhere can always be told apart."""
    assert lying(view_of(name), laid_out(name)) == []


def test_edges_on_each_other_are_noticed() -> None:
    """Negative control: pull a line across over another one."""
    view, found = view_of("densenet"), laid_out("densenet")
    squashed = tuple(Route(tuple((x, y // 300) for x, y in r.points)) for r in found.routes)
    assert lying(view, replace(found, routes=squashed))


@pytest.mark.parametrize(
    "name", ["resnet", "resnet_bottleneck", "mobilenet_v2", "convnext", "preactivation_resnet"]
)
def test_residual_streams_are_straight(name: str) -> None:
    """One way into every add comes straight down and carries the stream; so do all its adds."""
    view, found = view_of(name), laid_out(name)
    middles: dict[str, set[float]] = {}
    for k, box in enumerate(view.boxes):
        if not box.text.startswith("add"):
            continue
        ways = [
            route.straight and edge.shares == box.leaving
            for edge, route in zip(view.edges, found.routes, strict=True)
            if edge.target == k
        ]
        assert any(ways), box.name
        for share in box.leaving:
            middles.setdefault(share.key, set()).add(found.boxes[k].middle)
    assert middles
    assert all(len(found) == 1 for found in middles.values())


def test_rows_are_longest_paths_and_constants_stand_near_their_reader() -> None:
    """By hand: 0 → 1 → 2 → 4, 3 (a constant) → 4, 0 → 4."""
    flow = Flow(((), (0,), (1,), (), (2, 3, 0)))
    assert rows(flow, [True, False, False, False, False]) == (0, 1, 2, 2, 3)


def test_the_skip_connection_is_the_chain() -> None:
    """By hand: 0 → 1 → 2 → 3 with 0 → 3: the skip goes straight on, the branch beside it."""
    flow = Flow(((), (0,), (1,), (2, 0), (3,)))
    assert chains(flow, rows(flow, [True] * 5)) == ((0, 3, 4), (1, 2))


def test_large_networks_are_laid_out_at_once() -> None:
    """Three thousand boxes with skips over ten rows, in a second or so."""
    base = view_of("resnet")
    box = base.boxes[1]
    edges = [Edge(k, k + 1, ()) for k in range(2999)]
    edges += [Edge(k, k + 10, ()) for k in range(0, 2989, 3)]
    found = layout(replace(base, boxes=(box,) * 3000, edges=tuple(edges)))
    assert len(found.boxes) == 3000
    assert found.height > 100_000


@settings(max_examples=150, deadline=None)
@given(st.data(), st.integers(2, 24))
def test_any_graph_is_drawn_legibly(data: st.DataObject, count: int) -> None:
    """The properties above, on random graphs with boxes of random widths."""
    base = view_of("resnet")
    kinds = (base.boxes[1], *(replace(base.boxes[2], text="x" * n) for n in range(1, 40, 3)))
    boxes = tuple(data.draw(st.sampled_from(kinds)) for _ in range(count))
    edges = []
    for k in range(1, count):
        sources = data.draw(st.sets(st.integers(max(0, k - 9), k - 1), max_size=9))
        edges += [Edge(source, k, ()) for source in sorted(sources)]
    view = replace(base, boxes=boxes, edges=tuple(edges))
    found = layout(view)
    assert not [1 for a, b in combinations(found.boxes, 2) if overlap(a, b, 8.0)]
    assert not [1 for r in found.routes for box in found.boxes if crosses(_solid(r), box)]
    assert lying(view, found) == []


def test_nothing_to_draw() -> None:
    """A view without boxes is an empty sheet."""
    found = layout(replace(view_of("resnet"), boxes=(), edges=()))
    assert found.boxes == found.routes == ()
