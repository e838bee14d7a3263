"""Which candidate is best: all sources, or one alone.

Where all sources have the same outputs and the budget is small, one source thinned may be better
than all of them thinned further. No predicted error tells (docs/accuracy-findings.md), so every
candidate is fitted on half the images and judged on the other half, both ways round.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from passes.judge import Answers, answers, expected, score
from passes.rewrite import Rewritten
from pleas_fx.calibration import Batches
from pleas_fx.complement import combined
from pleas_fx.errors import PleasError
from pleas_fx.ir import Plan, Program, letters, only

Planned = tuple[Plan, Rewritten]
Decide = Callable[[int], Planned]  # the plan of one source alone


@dataclass(frozen=True, slots=True)
class Candidate:
    """A planned network."""

    title: str
    planned: Planned


FitOn = Callable[[Candidate, Batches], object]  # in place
ENOUGH = 1024  # images of a half; of more, some are left out


@dataclass(frozen=True, slots=True)
class Half:
    """Images to fit on, others to judge on, and what the sources say of these."""

    fitted: Batches
    judged: Batches
    each: tuple[Answers, ...]  # of every source
    wanted: Answers  # what networks are fitted to


@dataclass(frozen=True, slots=True)
class Tried:
    """A candidate, and what the sources give to its answers on images that it wasn't fitted on."""

    candidate: Candidate
    score: float


def choose(
    programs: Sequence[Program],
    data: Batches,
    everyone: Candidate,
    decide: Decide,
    fit: FitOn,
    made: Batches | None = None,
) -> Candidate:
    """The best candidate; ``everyone`` where none is better, or where that can't be told.

    What was ``made`` beside the data is fitted on, too, but doesn't judge.
    """
    halves = _halves(programs, data, made)
    if not halves:
        return everyone
    together = _tried(everyone, halves, fit)
    alone = list(_alone(together, halves, decide, fit))
    if not alone:
        return everyone
    best = max((together, *alone), key=lambda tried: tried.score)  # the first one, if equal
    return _noted(best.candidate, (together, *alone))


def _alone(together: Tried, halves: Sequence[Half], decide: Decide, fit: FitOn) -> Iterator[Tried]:
    """Every source that is better untouched; others won't be when they are thinned."""
    for source in range(len(halves[0].each)):
        untouched = fmean(score(half.each[source], half.wanted) for half in halves)
        if untouched <= together.score:
            continue
        try:
            candidate = Candidate(f"source {letters(only(source))} alone", decide(source))
        except PleasError:  # this graph, or this budget, leaves no such network
            continue
        thinned = any(g.dropped[source] for g in candidate.planned[0].groups)
        yield _tried(candidate, halves, fit) if thinned else Tried(candidate, untouched)


def _tried(candidate: Candidate, halves: Sequence[Half], fit: FitOn) -> Tried:
    found = []
    for half in halves:
        trial = copied(candidate)
        fit(trial, half.fitted)
        made = answers(trial.planned[1].module, half.judged.batches)
        found.append(score(made, half.wanted))
    return Tried(candidate, fmean(found))


def copied(candidate: Candidate) -> Candidate:
    """A copy to be fitted."""
    plan, rewritten = candidate.planned
    copied = replace(rewritten, module=copy.deepcopy(rewritten.module))
    return replace(candidate, planned=(plan, copied))


def _noted(chosen: Candidate, compared: Sequence[Tried]) -> Candidate:
    """Say what was compared."""
    plan, rewritten = chosen.planned
    scores = "; ".join(f"{tried.candidate.title} {tried.score:.3f}" for tried in compared)
    note = (
        f"{chosen.title}: what the sources give to the answers on images that weren't fitted on "
        f"({scores})"
    )
    text = f"{plan.note}; {note}" if plan.note else note
    return replace(chosen, planned=(replace(plan, note=text), rewritten))


def _halves(programs: Sequence[Program], data: Batches, made: Batches | None) -> list[Half]:
    """Fit on one half and judge on the other, both ways; empty where there is only one image."""
    step = max(2, data.examples // ENOUGH)
    parts = [data.every(step, first) for first in (0, 1)]
    if not all(part.batches for part in parts):
        return []
    halves = []
    for fitted, judged in (parts, parts[::-1]):
        each = tuple(answers(p.module, judged.batches) for p in programs)
        wanted = expected(each, judged.owners)
        halves.append(Half(combined(fitted, made) or fitted, judged, each, wanted))
    return halves
