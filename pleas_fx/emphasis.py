"""What each source's errors count in the plan: more for a source that thinning hurts more.

Predicted errors are of one group at a time, and what they do to the outputs differs between sources
(docs/decisions/2026-11-27-emphasis.md). Where plans are cheap, some are fitted whole, and the one
that leaves least of the outputs unexplained is taken. All of them have the same budget, so that
none is favoured by the images it was fitted on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from pleas_fx.ir import Plan, letters, members, only

Outcome = TypeVar("Outcome")
Emphasis = tuple[float, ...]

WORTH = 0.01  # unexplained share of the outputs below which nothing is tried
BETTER = 0.99  # of what was left before
MOST = 8.0  # times as much as the other sources
AFFORDABLE = 3e11  # FLOPs of all sources on all images: a fit is several times that
WIDEST = 512  # channels of a group: wider ones take long to plan


def affordable(flops: int, images: int, widths: Sequence[int]) -> bool:
    """Whether several plans and fits are quick. ``flops``: of one image in all sources."""
    return flops * images <= AFFORDABLE and max(widths, default=0) <= WIDEST


def balanced(
    first: Outcome,
    sources: int,
    attempt: Callable[[Emphasis], Outcome | None],
    left: Callable[[Outcome], float],
) -> Outcome:
    """The outcome that leaves least: every source counts twice in turn, the best of them more.

    ``first``: with all counting the same. ``attempt`` gives None where there is no such plan.
    """
    if not left(first) > WORTH:
        return first
    best, source = first, None
    for s in range(sources):
        found = attempt(_emphasis(s, 2.0, sources))
        if found is not None and left(found) < BETTER * left(best):
            best, source = found, s
    times = 4.0
    while source is not None and times <= MOST:
        found = attempt(_emphasis(source, times, sources))
        if found is None or not left(found) < BETTER * left(best):
            break
        best, times = found, 2 * times
    return best


def _emphasis(source: int, times: float, sources: int) -> Emphasis:
    return tuple(times if s == source else 1.0 for s in range(sources))


def described(emphasis: Emphasis) -> str:
    """For the plan's note."""
    source = int(np.argmax(emphasis))
    return f"errors of source {letters(only(source))} count {emphasis[source]:g} times"


def takes_part(plan: Plan) -> set[int]:
    """The sources that have slots."""
    lanes = (lane for group in plan.groups for lane in group.lanes if len(lane))
    return {s for lane in lanes for s in members(lane.membership)}
