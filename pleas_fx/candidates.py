"""Which candidate is best: all sources or one alone, outputs fitted to owners or to the mean.

Where all sources have the same outputs and the budget is small, one source thinned may be better
than all of them thinned further; and where sources know each other's data, their mean may be a
better target than the owner. No predicted error tells (docs/accuracy-findings.md), so every
candidate is fitted on half the images and judged on the other half, both ways round.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from passes.judge import Answers, answers, owners_answers, score
from passes.rewrite import Rewritten
from pleas_fx.calibration import Batches
from pleas_fx.errors import PleasError
from pleas_fx.ir import Plan, Program, letters, only

Planned = tuple[Plan, Rewritten]
Decide = Callable[[int], Planned]  # the plan of one source alone


@dataclass(frozen=True, slots=True)
class Candidate:
    """A planned network, and whether its outputs are fitted to the owner's (where it is known)."""

    title: str
    planned: Planned
    owned: bool = True


FitOn = Callable[[Candidate, Batches, bool], object]  # in place; whether only the outputs' layers
Scored = tuple[float, Candidate]
ENOUGH = 1024  # images of a half; of more, some are left out


@dataclass(frozen=True, slots=True)
class Half:
    """Images to fit on, others to judge on, and what the sources say of these."""

    fitted: Batches
    judged: Batches
    each: tuple[Answers, ...]  # of every source
    wanted: Answers


def choose(
    programs: Sequence[Program], data: Batches, everyone: Candidate, decide: Decide, fit: FitOn
) -> Candidate:
    """The best candidate; ``everyone`` where none is better, or where that can't be told."""
    halves = _halves(programs, data)
    if not halves:
        return everyone
    scores = _together(everyone, data, halves, fit)
    scores += _alone(halves, decide, max(value for value, _ in scores), fit)
    if len(scores) == 1:
        return everyone
    return _noted(max(scores, key=lambda found: found[0])[1], scores)


def _together(
    everyone: Candidate, data: Batches, halves: Sequence[Half], fit: FitOn
) -> list[Scored]:
    """All sources, with either target: only the outputs' layers differ."""
    mean = replace(everyone, title=f"{everyone.title}, fitted to their mean", owned=False)
    tagged = any(owner is not None for owner in data.owners)
    found = [(0.0, c) for c in ((everyone, mean) if tagged else (everyone,))]
    for half in halves:
        trial = _trial(everyone)
        for k, (total, candidate) in enumerate(found):
            fit(replace(trial, owned=candidate.owned), half.fitted, k > 0)
            found[k] = (total + _score(trial, half) / len(halves), candidate)
    return found


def _alone(halves: Sequence[Half], decide: Decide, best: float, fit: FitOn) -> Iterator[Scored]:
    """Every source that is better untouched; others won't be when they are thinned."""
    for source in range(len(halves[0].each)):
        untouched = sum(score(h.each[source], h.wanted) for h in halves) / len(halves)
        if untouched <= best:
            continue
        try:
            planned = decide(source)
        except PleasError:  # this graph, or this budget, leaves no such network
            continue
        candidate = Candidate(f"source {letters(only(source))} alone", planned, owned=False)
        if any(g.dropped[source] for g in planned[0].groups):
            yield _judged(candidate, halves, fit), candidate
        else:
            yield untouched, candidate


def _judged(candidate: Candidate, halves: Sequence[Half], fit: FitOn) -> float:
    total = 0.0
    for half in halves:
        trial = _trial(candidate)
        fit(trial, half.fitted, False)
        total += _score(trial, half)
    return total / len(halves)


def _trial(candidate: Candidate) -> Candidate:
    """A copy to be fitted."""
    plan, rewritten = candidate.planned
    copied = replace(rewritten, module=copy.deepcopy(rewritten.module))
    return replace(candidate, planned=(plan, copied))


def _score(trial: Candidate, half: Half) -> float:
    return score(answers(trial.planned[1].module, half.judged.batches), half.wanted)


def _noted(chosen: Candidate, scores: Sequence[tuple[float, Candidate]]) -> Candidate:
    """Say what was compared."""
    plan, rewritten = chosen.planned
    compared = ", ".join(f"{candidate.title} {value:.3f}" for value, candidate in scores)
    note = (
        f"{chosen.title}: what the sources give to its answers on images it wasn't fitted on, "
        f"beside others ({compared})"
    )
    text = f"{plan.note}; {note}" if plan.note else note
    return replace(chosen, planned=(replace(plan, note=text), rewritten))


def _halves(programs: Sequence[Program], data: Batches) -> list[Half]:
    """Fit on one half and judge on the other, both ways; empty where there is only one image."""
    step = max(2, data.examples // ENOUGH)
    parts = [_every(data, first, step) for first in (0, 1)]
    if not all(part.batches for part in parts):
        return []
    halves = []
    for fitted, judged in (parts, parts[::-1]):
        each = tuple(answers(p.module, judged.batches) for p in programs)
        halves.append(Half(fitted, judged, each, owners_answers(each, judged.owners)))
    return halves


def _every(data: Batches, first: int, step: int) -> Batches:
    batches, owners = [], []
    for batch, owner in zip(data.batches, data.owners, strict=True):
        if len(batch[0]) > first:
            batches.append(tuple(t[first::step] for t in batch))
            owners.append(owner)
    return Batches(tuple(batches), tuple(owners))
