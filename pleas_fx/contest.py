"""Plans of one budget, fitted whole: what each source's and each group's errors count.

Predicted errors are of one group at a time, and what they do to the outputs differs between sources
and groups (docs/decisions/2026-11-27-contest.md). Where plans are cheap, some are fitted whole, and
the one that leaves least of the outputs unexplained is taken. All of them have the same budget, so
that none is favoured by the images it was fitted on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from pleas_fx.ir import GroupId, letters, only

Outcome = TypeVar("Outcome")

WORTH = 0.01  # share of the outputs: what an unequal plan has to explain more of
BETTER = 0.99  # of what was left before: enough for weights of groups, which are asked for
MOST = 8.0  # times as much as the other sources
SPREAD = 0.8  # of the logarithm of a weight, from the best so far
IMAGES = 512  # of a source, that many trials are fitted to
FOLDS = 2  # of these: the best of many is judged by what its outputs weren't fitted to
FEWEST = 64  # of a source: fewer tell nothing about many
AFFORDABLE = 3e11  # FLOPs of all sources on all images: a fit is several times that
WIDEST = 512  # channels of a group: wider ones take long to plan


@dataclass(frozen=True, slots=True)
class Emphasis:
    """How often errors count in a plan: every source's, and every group's; once if not given."""

    sources: tuple[float, ...] = ()
    groups: Mapping[GroupId, float] = field(default_factory=dict)

    def __str__(self) -> str:
        """For the plan's note."""
        found = []
        if self.sources:
            source = int(np.argmax(self.sources))
            name = letters(only(source))
            found.append(f"errors of source {name} count {self.sources[source]:g} times")
        if self.groups:
            low, high = min(self.groups.values()), max(self.groups.values())
            found.append(f"errors of groups count {low:.2g} to {high:.2g} times")
        return ", ".join(found)


Attempt = Callable[[Emphasis], Outcome | None]  # None where there is no such plan
Left = Callable[[Outcome], float]  # of the outputs, unexplained


def affordable(flops: int, images: int, widths: Sequence[int]) -> bool:
    """Whether plans and fits are quick. ``flops``: of one image in all sources."""
    return flops * images <= AFFORDABLE and max(widths, default=0) <= WIDEST


def contest(
    first: Outcome,
    sources: int,
    groups: Sequence[GroupId],
    attempt: Attempt[Outcome],
    left: Left[Outcome],
    *,
    seed: int,
    trials: int,
) -> Outcome:
    """The outcome that leaves least; ``first``: with all errors counting once.

    Sources are weighed one by one, then groups in ``trials`` drawn at random.
    """
    if not left(first) > WORTH:
        return first
    emphasis, best = _of_sources(first, sources, attempt, left)
    rng = np.random.default_rng(seed)
    return _of_groups(emphasis, best, groups, attempt, left, rng, trials)


def _of_sources(
    first: Outcome, sources: int, attempt: Attempt[Outcome], left: Left[Outcome]
) -> tuple[Emphasis, Outcome]:
    """Every source counts twice in turn, the best of them more, as long as that helps."""
    best, emphasis, source = first, Emphasis(), None
    for s in range(sources):
        tried = _only(s, 2.0, sources)
        found = attempt(tried)
        if found is not None and left(found) < left(best) - WORTH:
            best, emphasis, source = found, tried, s
    times = 4.0
    while source is not None and times <= MOST:
        tried = _only(source, times, sources)
        found = attempt(tried)
        if found is None or not left(found) < left(best) - WORTH:
            break
        best, emphasis, times = found, tried, 2 * times
    return emphasis, best


def _of_groups(
    emphasis: Emphasis,
    best: Outcome,
    groups: Sequence[GroupId],
    attempt: Attempt[Outcome],
    left: Left[Outcome],
    rng: np.random.Generator,
    trials: int,
) -> Outcome:
    """All groups' weights at once are drawn around those of the best so far."""
    weights = np.ones(len(groups))
    for _ in range(trials):
        drawn = weights * np.exp(SPREAD * rng.standard_normal(len(groups)))
        tried = Emphasis(emphasis.sources, dict(zip(groups, drawn.tolist(), strict=True)))
        found = attempt(tried)
        if found is not None and left(found) < BETTER * left(best):
            best, weights = found, drawn
    return best


def _only(source: int, times: float, sources: int) -> Emphasis:
    return Emphasis(tuple(times if s == source else 1.0 for s in range(sources)))
