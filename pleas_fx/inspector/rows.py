"""The vertical half of the layout: rows by longest path, and chains that stay in one column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Flow:
    """The dataflow graph as numbers: boxes in order of execution and what each one reads."""

    reads: tuple[tuple[int, ...], ...]

    @property
    def readers(self) -> tuple[tuple[int, ...], ...]:
        found: list[list[int]] = [[] for _ in self.reads]
        for box, sources in enumerate(self.reads):
            for source in sources:
                found[source].append(box)
        return tuple(map(tuple, found))


def rows(flow: Flow, entries: Sequence[bool]) -> tuple[int, ...]:
    """The row of every box: one below the lowest box it reads.

    What depends on no input (``entries``) stands just above its first reader instead of on top.
    """
    found = [0] * len(flow.reads)
    late = [False] * len(flow.reads)
    for box, sources in enumerate(flow.reads):
        found[box] = max((found[s] + 1 for s in sources), default=0)
        late[box] = not entries[box] and all(late[s] for s in sources)
    readers = flow.readers
    for box in reversed(range(len(found))):
        if late[box] and readers[box]:
            found[box] = max(found[box], min(found[r] for r in readers[box]) - 1)
    return tuple(found)


def chains(flow: Flow, row: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Boxes that share a column, from top to bottom; every box is in exactly one chain.

    A join goes on with the value that has waited longest, which is the skip connection; a value
    that several boxes could go on with takes the longest chain. So a residual stream is one chain.
    """
    above = [_longest_waiting(sources, row) for sources in flow.reads]
    below = _continuations(above, row)
    heads = [b for b, a in enumerate(above) if a is None or below[a] != b]
    return tuple(_follow(head, below) for head in heads)


def _longest_waiting(sources: Sequence[int], row: Sequence[int]) -> int | None:
    return min(sources, key=lambda s: row[s], default=None)


def _continuations(above: Sequence[int | None], row: Sequence[int]) -> list[int | None]:
    """Per box, the next of its chain. Boxes come in order of execution: the last one first."""
    below: list[int | None] = [None] * len(above)
    end = list(row)
    for box in reversed(range(len(above))):
        following = below[box]
        if following is not None:
            end[box] = end[following]
        parent = above[box]
        if parent is None:
            continue
        rival = below[parent]
        if rival is None or (end[box], row[box]) >= (end[rival], row[rival]):
            below[parent] = box
    return below


def _follow(head: int, below: Sequence[int | None]) -> tuple[int, ...]:
    found = [head]
    while (following := below[found[-1]]) is not None:
        found.append(following)
    return tuple(found)
