"""Which sources take part: all of them, or only the one that does better alone.

Where all sources have the same outputs and the budget is small, one source thinned may be better
than all of them thinned further. No predicted error tells (docs/accuracy-findings.md), so every
candidate is fitted on half the images and judged on the other half, both ways round.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from passes.judge import Answers, answers, owners_answers, score
from passes.rewrite import Rewritten
from pleas_fx.calibration import Batches
from pleas_fx.errors import PleasError
from pleas_fx.ir import Plan, Program, letters, only

Planned = tuple[Plan, Rewritten]
Decide = Callable[[int], Planned]  # the plan of one source alone
FitOn = Callable[[Rewritten, Batches, int | None], object]  # in place


@dataclass(frozen=True, slots=True)
class Half:
    """Images to fit on, others to judge on, and what the sources say of these."""

    fitted: Batches
    judged: Batches
    each: tuple[Answers, ...]  # of every source
    wanted: Answers


@dataclass(frozen=True, slots=True)
class Choice:
    """A plan, and the source that it is of when it is of one alone."""

    planned: Planned
    alone: int | None


def choose(
    programs: Sequence[Program], data: Batches, everyone: Planned, decide: Decide, fit: FitOn
) -> Choice:
    """The best of all candidates; ``everyone`` where none is better, or where that can't be told.

    A source that isn't better untouched won't be when it is thinned, and isn't tried.
    """
    halves = _halves(programs, data)
    if not halves:
        return Choice(everyone, None)
    best, chosen = _judged(everyone, None, halves, fit), Choice(everyone, None)
    together = best
    alone: dict[int, float] = {}
    for source in range(len(programs)):
        untouched = sum(score(h.each[source], h.wanted) for h in halves) / len(halves)
        if untouched <= best:
            continue
        try:
            planned = decide(source)
        except PleasError:  # this graph, or this budget, leaves no such network
            continue
        alone[source] = _judged(planned, source, halves, fit)
        if alone[source] > best:
            best, chosen = alone[source], Choice(planned, source)
    return _noted(chosen, together, alone)


def _noted(chosen: Choice, together: float, alone: dict[int, float]) -> Choice:
    """Say what was compared."""
    if not alone:
        return chosen
    plan, rewritten = chosen.planned
    others = ", ".join(f"source {letters(only(s))} alone {v:.3f}" for s, v in alone.items())
    kept = "all sources" if chosen.alone is None else f"source {letters(only(chosen.alone))}"
    note = (
        f"{kept} kept: judged by what the sources give to its answers on images it wasn't fitted "
        f"on, all sources together score {together:.3f}, {others}"
    )
    text = f"{plan.note}; {note}" if plan.note else note
    return replace(chosen, planned=(replace(plan, note=text), rewritten))


def _judged(planned: Planned, alone: int | None, halves: Sequence[Half], fit: FitOn) -> float:
    total = 0.0
    for half in halves:
        trial = replace(planned[1], module=copy.deepcopy(planned[1].module))
        fit(trial, half.fitted, alone)
        total += score(answers(trial.module, half.judged.batches), half.wanted)
    return total / len(halves)


def _halves(programs: Sequence[Program], data: Batches) -> list[Half]:
    """Every other image; empty where there is only one."""
    parts = [_every_other(data, first) for first in (0, 1)]
    if not all(part.batches for part in parts):
        return []
    halves = []
    for fitted, judged in (parts, parts[::-1]):
        each = tuple(answers(p.module, judged.batches) for p in programs)
        halves.append(Half(fitted, judged, each, owners_answers(each, judged.owners)))
    return halves


def _every_other(data: Batches, first: int) -> Batches:
    batches, owners = [], []
    for batch, owner in zip(data.batches, data.owners, strict=True):
        if len(batch[0]) > first:
            batches.append(tuple(t[first::2] for t in batch))
            owners.append(owner)
    return Batches(tuple(batches), tuple(owners))
