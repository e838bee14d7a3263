"""Which candidate is best: all sources, or the layers of one or a few.

Where all sources have the same outputs and the budget is small, one source thinned may be better
than all of them thinned further; its outputs may learn from the others all the same
(docs/decisions/2026-11-29-taught.md). No predicted error tells (docs/accuracy-findings.md), so
every candidate is fitted on half the images and judged on the other half, both ways round.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from statistics import fmean

from passes.judge import Answers, answers, expected, score
from passes.rewrite import Rewritten, Site
from pleas_fx.calibration import Batches
from pleas_fx.complement import combined
from pleas_fx.errors import PleasError
from pleas_fx.ir import Plan, Program

Planned = tuple[Plan, Rewritten]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A planned network."""

    title: str
    planned: Planned
    taught: tuple[Site, ...] = ()  # outputs to be fitted once more, to what all sources say
    whole: bool = False  # it is a source, before its outputs are taught: nothing else to fit

    @property
    def teaching(self) -> Rewritten:
        """What is to be fitted once more."""
        return replace(self.planned[1], sites=self.taught)


Decide = Callable[[Sequence[int]], Candidate]  # some sources only, their outputs to be taught
Fit = Callable[[Rewritten], object]  # in place
FitOn = Callable[[Batches], Fit]  # what many fits to the same images share is done once
Kept = tuple[int, ...]  # sources
SHOWN = 6  # candidates of a note
ENOUGH = 1024  # images of a half; of more, some are left out


@dataclass(frozen=True, slots=True)
class Half:
    """A fit to some images, others to judge on, and what the sources say of these."""

    fit: Fit
    judged: Batches
    wanted: Answers  # what networks are fitted to

    def score(self, candidate: Candidate) -> float:
        """Of a network that was fitted."""
        return score(answers(candidate.planned[1].module, self.judged.batches), self.wanted)


@dataclass(frozen=True, slots=True)
class Tried:
    """A candidate, and what the sources give to its answers on images that it wasn't fitted on."""

    candidate: Candidate
    score: float


def choose(sources: int, everyone: Candidate, decide: Decide, halves: Sequence[Half]) -> Candidate:
    """The best candidate; ``everyone`` where none is better, or where that can't be told."""
    if not halves:
        return everyone

    def attempt(kept: Kept) -> list[Tried]:
        decided = _decided(decide, kept)
        return [found for candidate in decided for found in _tried(candidate, halves)]

    fewer = _grown(sources, attempt)
    if not fewer:
        return everyone
    tried = [*_tried(everyone, halves), *fewer]
    best = max(tried, key=lambda one: one.score)  # the first one, if equal
    return _noted(best.candidate, tried)


def safest(sources: int, everyone: Candidate, decide: Decide, halves: Sequence[Half]) -> Candidate:
    """The best single source as it is, for want of images of the sources' kind.

    What others say neither judges nor teaches then: the less is fitted, the better
    (docs/decisions/2026-12-01-blind.md). ``everyone`` where no source can be alone.
    """
    alone = [c for s in range(sources) for c in _decided(decide, (s,))] if halves else []
    tried = [found for c in alone for found in _tried(replace(c, taught=()), halves)]
    if not tried:
        return everyone
    best = max(tried, key=lambda one: one.score).candidate
    title = f"{best.title}, for want of images of the sources' kind"
    return _noted(replace(best, title=title), tried)


def _grown(sources: int, attempt: Callable[[Kept], list[Tried]]) -> list[Tried]:
    """Every source alone, then others beside the best as long as that helps, never all of them."""
    kept: Kept = ()
    best, tried = -math.inf, list[Tried]()
    while len(kept) < sources - 1:
        found = {(*kept, s): attempt((*kept, s)) for s in range(sources) if s not in kept}
        tried += itertools.chain.from_iterable(found.values())
        kept = max(found, key=lambda k: _best(found[k]))
        if not _best(found[kept]) > best:
            break
        best = _best(found[kept])
    return tried


def _best(tried: Sequence[Tried]) -> float:
    return max((one.score for one in tried), default=-math.inf)


def _decided(decide: Decide, kept: Kept) -> Iterator[Candidate]:
    """None where this graph, or this budget, leaves no such network."""
    with suppress(PleasError):
        yield decide(sorted(kept))


def _tried(candidate: Candidate, halves: Sequence[Half]) -> Iterator[Tried]:
    """A candidate as it is, and with its outputs taught."""
    trials = [copied(candidate) for _ in halves]
    if not candidate.whole:
        for trial, half in zip(trials, halves, strict=True):
            half.fit(trial.planned[1])
    yield Tried(replace(candidate, taught=()), _score(trials, halves))
    if not candidate.taught:
        return
    for trial, half in zip(trials, halves, strict=True):
        half.fit(trial.teaching)
    title = f"{candidate.title}, outputs taught by all"
    yield Tried(replace(candidate, title=title), _score(trials, halves))


def _score(trials: Sequence[Candidate], halves: Sequence[Half]) -> float:
    return fmean(half.score(trial) for trial, half in zip(trials, halves, strict=True))


def copied(candidate: Candidate) -> Candidate:
    """A copy to be fitted."""
    plan, rewritten = candidate.planned
    copied = replace(rewritten, module=copy.deepcopy(rewritten.module))
    return replace(candidate, planned=(plan, copied))


def _noted(chosen: Candidate, compared: Sequence[Tried]) -> Candidate:
    """Say what was compared, the best first."""
    plan, rewritten = chosen.planned
    ranked = sorted(compared, key=lambda tried: -tried.score)
    scores = "; ".join(f"{tried.candidate.title} {tried.score:.3f}" for tried in ranked[:SHOWN])
    if len(ranked) > SHOWN:
        scores += f"; {len(ranked) - SHOWN} others less"
    note = (
        f"{chosen.title}: what the sources give to the answers on images that weren't fitted on "
        f"({scores})"
    )
    text = f"{plan.note}; {note}" if plan.note else note
    return replace(chosen, planned=(replace(plan, note=text), rewritten))


def split(
    programs: Sequence[Program], data: Batches, fit_on: FitOn, made: Batches | None
) -> list[Half]:
    """Fit on one half and judge on the other, both ways; empty where there is only one image.

    What was ``made`` beside the data is fitted on, too, but doesn't judge.
    """
    step = max(2, data.examples // ENOUGH)
    parts = [data.every(step, first) for first in (0, 1)]
    if not all(part.batches for part in parts):
        return []
    halves = []
    for fitted, judged in (parts, parts[::-1]):
        each = tuple(answers(p.module, judged.batches) for p in programs)
        wanted = expected(each, judged.owners)
        halves.append(Half(fit_on(combined(fitted, made) or fitted), judged, wanted))
    return halves
