"""The horizontal half of the layout: a column for every chain and for every long wire."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pleas_fx.inspector.rows import Flow

GAP = 22.0  # between two boxes of a row
WIRE = 9.0  # half of what a wire needs for itself


@dataclass(frozen=True, slots=True)
class Columns:
    """The x of every box's centre and of every value that has to pass rows by."""

    boxes: tuple[float, ...]
    wires: Mapping[int, float]  # source box -> x of its own wire
    trunks: Mapping[int, int]  # source box -> row to which its own column carries its value


class _Field:
    """What is taken, row by row: intervals of x. All numbers are whole, so ends meet exactly."""

    def __init__(self, rows: int) -> None:
        self.taken: list[list[tuple[float, float]]] = [[] for _ in range(rows)]

    def take(self, row: int, x: float, half: float) -> None:
        self.taken[row].append((x - half, x + half))

    def nearest(self, spans: Sequence[tuple[int, float]], wish: float) -> float:
        """The free x closest to ``wish`` for something with these half widths in these rows."""
        right = self._slide(spans, wish, 1)
        left = self._slide(spans, wish, -1)
        return right if right - wish <= wish - left else left

    def _slide(self, spans: Sequence[tuple[int, float]], x: float, way: int) -> float:
        moved = True
        while moved:
            moved = False
            for row, half in spans:
                for low, high in self.taken[row]:
                    if low < x + half and x - half < high:
                        x = high + half if way > 0 else low - half
                        moved = True
        return x


def columns(
    flow: Flow, row: Sequence[int], chains: Sequence[tuple[int, ...]], widths: Sequence[float]
) -> Columns:
    """Chains first, the top ones first, each as near as possible to where it branches off."""
    field = _Field(max(row, default=0) + 1)
    x = [0.0] * len(row)
    trunks: dict[int, int] = {}
    for chain in sorted(chains, key=lambda c: (row[c[0]], -row[c[-1]])):
        spans = list(_spans(chain, row, widths, trunks))
        place = field.nearest(spans, _wish(flow, chain, x))
        for at, half in spans:
            field.take(at, place, half)
        for box in chain:
            x[box] = place
    wires = _wires(flow, row, x, trunks, field)
    shift = min([x[b] - widths[b] / 2 for b in range(len(x))] + [w - WIRE for w in wires.values()])
    return Columns(
        tuple(place - shift for place in x), {s: w - shift for s, w in wires.items()}, trunks
    )


def _spans(
    chain: Sequence[int], row: Sequence[int], widths: Sequence[float], trunks: dict[int, int]
) -> Iterator[tuple[int, float]]:
    """What a chain takes up; where it only carries a value, that value's wire is noted."""
    for box, following in zip(chain, [*chain[1:], None], strict=True):
        yield row[box], widths[box] / 2 + GAP / 2
        if following is not None and row[following] > row[box] + 1:
            trunks[box] = row[following]
            yield from ((between, WIRE) for between in range(row[box] + 1, row[following]))


def _wish(flow: Flow, chain: Sequence[int], x: Sequence[float]) -> float:
    sources = flow.reads[chain[0]]
    return x[sources[0]] if sources else 0.0


def _wires(
    flow: Flow,
    row: Sequence[int],
    x: Sequence[float],
    trunks: Mapping[int, int],
    field: _Field,
) -> dict[int, float]:
    """A wire for every value that someone reads further down than its own column carries it."""
    found: dict[int, float] = {}
    for source, readers in enumerate(flow.readers):
        carried = trunks.get(source, row[source] + 1)
        distant = [reader for reader in readers if row[reader] > carried]
        if not distant:
            continue
        last = max(row[reader] for reader in distant)
        # Also beside the boxes at both ends: a wire never runs into one it doesn't belong to.
        spans = [(between, WIRE) for between in range(row[source], last + 1)]
        wish = sum(x[reader] for reader in distant) / len(distant)
        found[source] = field.nearest(spans, float(round((wish + x[source]) / 2)))
        for at, half in spans:
            field.take(at, found[source], half)
    return found
