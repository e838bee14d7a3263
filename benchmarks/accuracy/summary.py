"""Means and spreads over seeds, and where the default loses."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from benchmarks.accuracy.methods import METHODS
from benchmarks.accuracy.records import Record

DEFAULT = "pleas"
RIVALS = ("best-source",)  # references that are an answer one could deploy
EQUAL = 0.02  # relative: budgets that count as the same
TESTED = 2000  # images behind a figure, at least: the error of a share of them


@dataclass(frozen=True, slots=True)
class Cell:
    """One method in one setting over its seeds; sizes relative to one source."""

    accuracy: float
    spread: float  # standard deviation over seeds; NaN for one seed
    seeds: int
    flops: float
    params: float
    note: str = ""
    by_seed: tuple[tuple[int, float], ...] = ()

    def ahead_of(self, other: Cell) -> float:
        """Mean difference over the seeds that both have; NaN without any."""
        theirs = dict(other.by_seed)
        found = [a - theirs[seed] for seed, a in self.by_seed if seed in theirs]
        return sum(found) / len(found) if found else math.nan

    def __str__(self) -> str:
        if math.isnan(self.accuracy):
            return "refused" if self.note else "-"
        spread = f" ± {100 * self.spread:.1f}" if self.seeds > 1 else ""
        return f"{100 * self.accuracy:.1f}{spread}"


Where = tuple[str, str, str, float]  # scenario, architecture, method, budget
Cells = Mapping[Where, Cell]


def cells(records: Iterable[Record]) -> dict[Where, Cell]:
    """Every method, setting and budget; references have budget 0."""
    own: dict[Where, list[Record]] = defaultdict(list)
    for record in records:
        own[record.scenario, record.architecture, record.method, record.budget].append(record)
    return {where: _cell(found) for where, found in own.items()}


def _cell(records: list[Record]) -> Cell:
    good = [r for r in records if not math.isnan(r.accuracy)]
    if not good:
        return Cell(math.nan, math.nan, 0, math.nan, math.nan, records[0].note)
    n = len(good)
    mean = sum(r.accuracy for r in good) / n
    variance = sum((r.accuracy - mean) ** 2 for r in good) / max(n - 1, 1)
    return Cell(
        mean,
        math.sqrt(variance) if n > 1 else math.nan,
        n,
        sum(r.flops for r in good) / n,
        sum(r.params for r in good) / n,
        by_seed=tuple((r.seed, r.accuracy) for r in good),
    )


@dataclass(frozen=True, slots=True)
class Loss:
    """A setting in which a rival is better than the default, at no more FLOPs."""

    where: Where  # of the rival
    margin: float
    noise: float  # one standard error of the difference


def losses(found: Cells) -> list[Loss]:
    """The best rival of every setting and budget, where it beats the default; worst first."""
    best: list[Loss] = []
    for (scenario, architecture, method, budget), mine in found.items():
        if method != DEFAULT:
            continue
        ahead = [
            Loss((*where[:3], budget), cell.ahead_of(mine), _noise(cell, mine))
            for where, cell in found.items()
            if where[:2] == (scenario, architecture)
            and _rival(where[2])
            and where[3] in (budget, 0.0)
            and cell.ahead_of(mine) > 0
            and cell.flops <= max(mine.flops, budget) * (1 + EQUAL)
        ]
        if ahead:
            best.append(max(ahead, key=lambda loss: loss.margin))
    return sorted(best, key=lambda loss: -loss.margin)


def _rival(method: str) -> bool:
    """Whether it is an answer one could deploy without training."""
    return not METHODS[method].trained if method in METHODS else method in RIVALS


def _noise(a: Cell, b: Cell) -> float:
    """From the seeds where there are several, and never less than the test images leave."""
    counted = sum(c.accuracy * (1 - c.accuracy) / (TESTED * c.seeds) for c in (a, b))
    seeds = sum(c.spread**2 / c.seeds for c in (a, b) if c.seeds > 1)
    return math.sqrt(max(counted, seeds))


def means(found: Cells, scenarios: Iterable[str], budget: float) -> dict[str, tuple[float, int]]:
    """Per method: mean over the settings that the default and it have, and how many."""
    chosen = set(scenarios)
    sums: dict[str, list[float]] = defaultdict(list)
    for (scenario, architecture, method, at), cell in found.items():
        known = found.get((scenario, architecture, DEFAULT, budget))
        if scenario in chosen and at in (budget, 0.0) and known and not math.isnan(cell.accuracy):
            sums[method].append(cell.accuracy)
    return {method: (sum(own) / len(own), len(own)) for method, own in sums.items()}


def ahead(found: Cells, scenarios: Iterable[str], method: str, budget: float) -> tuple[float, int]:
    """Mean lead of the default over settings and seeds that both have, and how many settings."""
    chosen = set(scenarios)
    leads = [
        cell.ahead_of(other)
        for (scenario, architecture, name, at), cell in found.items()
        if (name, at) == (DEFAULT, budget) and scenario in chosen
        for other in (
            found.get((scenario, architecture, method, budget)),
            found.get((scenario, architecture, method, 0.0)),
        )
        if other is not None
    ]
    known = [lead for lead in leads if not math.isnan(lead)]
    return (sum(known) / len(known) if known else math.nan), len(known)
