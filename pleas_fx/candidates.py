"""Which candidate is best: all sources or one alone, outputs fitted to owners or to the mean.

Where all sources have the same outputs and the budget is small, one source thinned may be better
than all of them thinned further; and where sources know each other's data, their mean may be a
better target than the owner. No predicted error tells (docs/accuracy-findings.md), so every
candidate is fitted on half the images and judged on the other half, both ways round.

Owners judge the target. Unless they believe the answers fitted to themselves clearly more, the mean
is the target, and the judge of who takes part; else the owners are, and no source on its own
images, where it is right by definition.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from passes.judge import Answers, answers, owners_answers, score
from passes.rewrite import Rewritten
from pleas_fx.calibration import Batches
from pleas_fx.complement import combined
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
CLEARLY = 0.01  # of probability
ENOUGH = 1024  # images of a half; of more, some are left out


@dataclass(frozen=True, slots=True)
class Half:
    """Images to fit on, others to judge on, and what the sources say of these."""

    fitted: Batches
    judged: Batches
    each: tuple[Answers, ...]  # of every source
    owners: Answers
    mean: Answers


@dataclass(frozen=True, slots=True)
class Tried:
    """A candidate, and its answers on the images of every half that it wasn't fitted on."""

    candidate: Candidate
    answered: tuple[Answers, ...]


@dataclass(frozen=True, slots=True)
class Lead:
    """A source alone beside all together, on the same images."""

    alone: Tried
    score: float
    together: float

    @property
    def points(self) -> float:
        """Above 0 where the source alone is better."""
        return self.score - self.together


@dataclass(frozen=True, slots=True)
class Judges:
    """Who says what an answer is worth: the owners of the images, or the mean of the sources."""

    halves: Sequence[Half]
    mean: bool = False

    def score(self, tried: Tried, without: int | None = None) -> float:
        """What they give to the answers; ``without``: on images that aren't this source's own."""
        total = 0.0
        for found, half in zip(tried.answered, self.halves, strict=True):
            owners = half.judged.owners
            seen = [k for k, owner in enumerate(owners) if owner is None or owner != without]
            wanted = half.mean if self.mean else half.owners
            total += score([found[k] for k in seen], [wanted[k] for k in seen])
        return total / len(self.halves)

    def strangers(self, source: int) -> int | None:
        """Whose images to leave out when a source is judged: its own, if there are others."""
        others = all(set(half.judged.owners) - {source} for half in self.halves)
        return source if not self.mean and others else None


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
    together = _together(everyone, data, halves, fit)
    best = _target(together, Judges(halves))
    judges = Judges(halves, mean=not best.candidate.owned)
    leads = list(_alone(best, judges, decide, fit))
    if len(together) + len(leads) == 1:
        return everyone
    first = max(leads, key=lambda lead: lead.points, default=None)
    chosen = first.alone if first is not None and first.points > 0 else best
    return _noted(chosen.candidate, together, leads, judges)


def _together(
    everyone: Candidate, data: Batches, halves: Sequence[Half], fit: FitOn
) -> list[Tried]:
    """All sources, with either target: only the outputs' layers differ."""
    mean = replace(everyone, title=f"{everyone.title}, fitted to their mean", owned=False)
    tagged = any(owner is not None for owner in data.owners)
    targets = (everyone, mean) if tagged else (everyone,)
    answered: list[list[Answers]] = [[] for _ in targets]
    for half in halves:
        trial = copied(everyone)
        for own, candidate in zip(answered, targets, strict=True):
            fit(replace(trial, owned=candidate.owned), half.fitted, candidate is mean)
            own.append(_answers(trial, half))
    return [Tried(c, tuple(own)) for c, own in zip(targets, answered, strict=True)]


def _target(together: Sequence[Tried], owners: Judges) -> Tried:
    """Fitted to the owners where these say that it is clearly better."""
    owned, *others = together
    mean = others[0] if others else owned
    return owned if owners.score(owned) > owners.score(mean) + CLEARLY else mean


def _alone(best: Tried, judges: Judges, decide: Decide, fit: FitOn) -> Iterator[Lead]:
    """Every source that is better untouched; others won't be when they are thinned."""
    for source in range(len(judges.halves[0].each)):
        title = f"source {letters(only(source))} alone"
        candidate = replace(best.candidate, title=title, owned=False)
        left_out = judges.strangers(source)
        least = judges.score(best, left_out)
        tried = Tried(candidate, tuple(half.each[source] for half in judges.halves))
        if judges.score(tried, left_out) <= least:
            continue
        try:
            candidate = replace(candidate, planned=decide(source))
        except PleasError:  # this graph, or this budget, leaves no such network
            continue
        thinned = any(g.dropped[source] for g in candidate.planned[0].groups)
        tried = _tried(candidate, judges, fit) if thinned else replace(tried, candidate=candidate)
        yield Lead(tried, judges.score(tried, left_out), least)


def _tried(candidate: Candidate, judges: Judges, fit: FitOn) -> Tried:
    answered = []
    for half in judges.halves:
        trial = copied(candidate)
        fit(trial, half.fitted, False)
        answered.append(_answers(trial, half))
    return Tried(candidate, tuple(answered))


def copied(candidate: Candidate) -> Candidate:
    """A copy to be fitted."""
    plan, rewritten = candidate.planned
    copied = replace(rewritten, module=copy.deepcopy(rewritten.module))
    return replace(candidate, planned=(plan, copied))


def _answers(trial: Candidate, half: Half) -> Answers:
    return answers(trial.planned[1].module, half.judged.batches)


def _noted(
    chosen: Candidate, together: Sequence[Tried], leads: Sequence[Lead], judges: Judges
) -> Candidate:
    """Say what was compared."""
    plan, rewritten = chosen.planned
    by_owners = Judges(judges.halves)
    compared = [f"{t.candidate.title} {by_owners.score(t):.3f}" for t in together]
    who = ", judged by the mean" if judges.mean else ""
    compared += [
        f"{lead.alone.candidate.title} {lead.score:.3f} against {lead.together:.3f}{who}"
        for lead in leads
    ]
    note = (
        f"{chosen.title}: what the sources give to the answers on images that weren't fitted on "
        f"({'; '.join(compared)})"
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
        owners = owners_answers(each, judged.owners)
        mean = owners_answers(each, (None,) * len(judged.owners))
        halves.append(Half(combined(fitted, made) or fitted, judged, each, owners, mean))
    return halves
