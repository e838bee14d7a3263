"""Measure what the records lack, a JSON line each, and write docs/accuracy.*."""

from __future__ import annotations

import argparse
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.accuracy import asked as common
from benchmarks.accuracy.architectures import ARCHITECTURES
from benchmarks.accuracy.asked import DOCS
from benchmarks.accuracy.data import MissingDataError
from benchmarks.accuracy.measure import Case, Setting, measure, settle
from benchmarks.accuracy.methods import CURVE, METHODS, REFERENCES
from benchmarks.accuracy.page import write
from benchmarks.accuracy.records import REFERENCE_CASE, Records
from benchmarks.accuracy.scenarios import CURVES, MAIN, ORIGINS, SCENARIOS, SLOW

VERSIONS = {method.name: method.version for method in METHODS.values()}
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
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="at once")
    parser.add_argument("--page", action="store_true", help="only write the page again")
    return parser.parse_args(given)


def shares(wanted: Sequence[Case], records: Records) -> list[list[Case]]:
    """Together what may train the same networks, where something is missing; in order."""
    found: dict[tuple[str, int], list[Case]] = defaultdict(list)
    for case in dict.fromkeys(wanted):
        found[case.setting.architecture, case.setting.seed].append(case)
    return [share for share in found.values() if any(case not in records for case in share)]


def _measure(share: Sequence[Case], asked: argparse.Namespace, end: float) -> None:
    """What a share lacks, one case after the other until the time is up: what a process does."""
    records, store = _known(asked), common.store(asked)
    settle(share, records, store)
    for case in share:
        if time.time() > end:
            return
        if case not in records:
            found = measure(case, store)
            records.add(case, found)
            for record in found:
                print(record, flush=True)


def _known(asked: argparse.Namespace) -> Records:
    file, published = asked.folder / "records.jsonl", asked.docs / "accuracy.json"
    return Records(file, VERSIONS, published, REFERENCES, ORIGINS)


def _measure_all(asked: argparse.Namespace) -> None:
    """In several processes of one thread each: these networks are too small for more."""
    end = time.time() + 60 * asked.minutes
    wanted = list(cases(Plan(tuple(asked.only), asked.seeds)))
    with ProcessPoolExecutor(
        asked.processes, get_context("spawn"), torch.set_num_threads, (1,)
    ) as pool:
        started = [
            pool.submit(_measure, share, asked, end) for share in shares(wanted, _known(asked))
        ]
        for one in started:
            one.result()


def main() -> None:
    """What the command does."""
    try:
        run(arguments())
    except MissingDataError as error:
        raise SystemExit(str(error)) from error


def run(asked: argparse.Namespace) -> None:
    """Measure what is missing, then write the page."""
    torch.set_num_threads(1)
    if not asked.page:
        _measure_all(asked)
    write(_known(asked), asked.docs)


if __name__ == "__main__":
    main()
