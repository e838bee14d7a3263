"""Measure what the records lack, a JSON line each, and write docs/accuracy.*."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import groupby
from operator import attrgetter
from pathlib import Path

import torch

from benchmarks.accuracy import asked as common
from benchmarks.accuracy.architectures import ARCHITECTURES
from benchmarks.accuracy.asked import DOCS
from benchmarks.accuracy.data import MissingDataError
from benchmarks.accuracy.evaluate import Tests
from benchmarks.accuracy.measure import Case, Setting, measure
from benchmarks.accuracy.methods import CURVE, METHODS, REFERENCES
from benchmarks.accuracy.page import write
from benchmarks.accuracy.records import REFERENCE_CASE, Records
from benchmarks.accuracy.scenarios import CURVES, MAIN, SCENARIOS, SLOW
from benchmarks.accuracy.sources import sources
from benchmarks.accuracy.tasks import Store

ROUNDED = 1e-5  # accuracies in records
FIRST = "resnet-narrow"  # runs all scenarios and curves; the others the main ones


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run."""

    only: tuple[str, ...]
    seeds: int


def cases(plan: Plan) -> Iterator[Case]:
    """Pattern by pattern, seed by seed; a pattern is of scenario/architecture/method."""
    for pattern in plan.only:
        yield from _matching(pattern, plan.seeds)


def _matching(pattern: str, seeds: int) -> Iterator[Case]:
    for seed in range(seeds):
        for architecture in ARCHITECTURES:
            for name, scenario in SCENARIOS.items():
                if name not in MAIN and architecture != FIRST:
                    continue
                setting = Setting(name, architecture, seed)
                if (
                    fnmatch(f"{name}/{architecture}/{REFERENCE_CASE}", pattern)
                    and not scenario.brief
                ):
                    yield Case(setting, REFERENCE_CASE, 0.0)
                yield from _merges(setting, pattern)


def _merges(setting: Setting, pattern: str) -> Iterator[Case]:
    scenario = SCENARIOS[setting.scenario]
    for method in METHODS.values():
        if scenario.brief and not method.brief:
            continue
        if (scenario.images == 0 and method.needs_data) or (method.same and not scenario.same):
            continue
        if method.trained and not (setting.architecture == FIRST and setting.scenario in MAIN):
            continue
        curve = setting.architecture == FIRST and setting.scenario in CURVES
        if method.slow and not (curve and setting.scenario in SLOW):
            continue
        wanted = fnmatch(f"{setting.scenario}/{setting.architecture}/{method.name}", pattern)
        budgets = CURVE if curve and len(method.budgets) > 2 else method.budgets
        budgets = (1.0,) if scenario.images == 0 else budgets
        if wanted:
            yield from (Case(setting, method.name, budget) for budget in budgets)


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """What was asked for on the command line."""
    parser = common.parser(__doc__)
    parser.add_argument("--docs", type=Path, default=DOCS, help="where the page goes")
    parser.add_argument(
        "--only",
        nargs="+",
        default=["*"],
        help="patterns of scenario/architecture/method, in the order they are to be measured",
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after this long")
    parser.add_argument("--page", action="store_true", help="only write the page again")
    return parser.parse_args(given)


def alike(scenario: str) -> list[str]:
    """The scenarios with the same sources: they differ in their images or tags."""
    own = SCENARIOS[scenario]
    return [n for n, s in SCENARIOS.items() if (s.parts, s.tuned) == (own.parts, own.tuned)]


def others(setting: Setting, records: Records, store: Store) -> bool:
    """Whether the sources aren't those that were measured: other processors train others."""
    scenario, where = SCENARIOS[setting.scenario], (setting.architecture, setting.seed)
    same = alike(setting.scenario)
    known = [
        r.parts
        for r in records
        if r.method == "own" and r.scenario in same and (r.architecture, r.seed) == where
    ]
    if not known:
        return False
    found = Tests(scenario, store).own(sources(scenario, setting.architecture, setting.seed, store))
    return any(abs(a - b) > ROUNDED for a, b in zip(found, known[0], strict=True))


def _measure(wanted: Iterator[Case], records: Records, store: Store, end: float) -> None:
    """What is missing, until the time is up."""
    for setting, own in groupby(wanted, key=attrgetter("setting")):
        together = list(own)
        missing = [case for case in together if case not in records]
        if time.monotonic() > end:
            return
        if missing and others(setting, records, store):
            for name in alike(setting.scenario):
                records.forget(name, setting.architecture, setting.seed)
            missing = together
        for case in missing:
            if time.monotonic() > end:
                return
            _add(records, case, store)


def _add(records: Records, case: Case, store: Store) -> None:
    found = measure(case, store)
    records.add(case, found)
    for record in found:
        print(record, flush=True)


def main() -> None:
    """What the command does."""
    try:
        run(arguments())
    except MissingDataError as error:
        raise SystemExit(str(error)) from error


def run(asked: argparse.Namespace) -> None:
    """Measure, one case after the other; the page is written at the end."""
    torch.set_num_threads(1)
    versions = {method.name: method.version for method in METHODS.values()}
    records = Records(
        asked.folder / "records.jsonl", versions, asked.docs / "accuracy.json", REFERENCES
    )
    store = common.store(asked)
    end = time.monotonic() + 60 * asked.minutes
    if not asked.page:
        _measure(cases(Plan(tuple(asked.only), asked.seeds)), records, store, end)
    write(records, asked.docs)


if __name__ == "__main__":
    main()
