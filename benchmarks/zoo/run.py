"""Measure the zoo, a process a network; what is already in ``docs/coverage.json`` is kept."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.zoo.models import MODELS
from benchmarks.zoo.page import page
from benchmarks.zoo.worker import work

DOCS = Path(__file__).resolve().parents[2] / "docs"

Fields = dict[str, Any]
OF_MERGES = """planted_error planted_merged ensemble_error ensemble_flops merge_flops onnx_error
    onnx_rounding exporter warnings peak_mb""".split()


@dataclass(frozen=True, slots=True)
class Limits:
    """What the process of one network may use; seconds of a processor, however busy it is."""

    seconds: int = 300
    memory: int = 12 << 30


def load(path: Path) -> dict[str, Fields]:
    """The records of an earlier run, by name."""
    if not path.exists():
        return {}
    return {record["name"]: record for record in json.loads(path.read_text())}


def store(records: Iterable[Fields], folder: Path) -> None:
    """Write both documents; a record a line, sorted, so that differences can be read."""
    ordered = sorted(records, key=lambda record: str(record["name"]))
    lines = ",\n".join(json.dumps(record) for record in ordered)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("json", f"[\n{lines}\n]\n"), ("md", page(ordered, len(MODELS)))):
        partial = folder / f"coverage.{name}.part"
        partial.write_text(text)
        os.replace(partial, folder / f"coverage.{name}")


def measure(name: str, analysis_only: bool, limits: Limits) -> Fields:
    """The record of one network, or as far as its process came within the limits."""
    forks = multiprocessing.get_context("fork")  # the imports, done once
    ours, theirs = forks.Pipe(duplex=False)
    process = forks.Process(
        target=work, args=(name, analysis_only, limits.seconds, limits.memory, theirs)
    )
    process.start()
    theirs.close()
    record: Fields = {"name": name, "status": "running", "errors": {}, "seconds": {}}
    with suppress(EOFError):
        while True:
            record = ours.recv()
    process.join()
    if record["status"] == "running":
        slow = process.exitcode == -signal.SIGXCPU
        ended = f"more than {limits.seconds} s" if slow else f"ended with code {process.exitcode}"
        record["status"] = ended
    return record


def renewed(earlier: Fields, analysis: Fields) -> Fields:
    """A record whose analysis was done again; what its merges gave stays."""
    if analysis["status"] != "analysed" or earlier.get("status") != "finished":
        return analysis
    kept = {key: earlier.get(key) for key in (*OF_MERGES, "errors", "status")}
    return analysis | kept | {"seconds": earlier["seconds"] | analysis["seconds"]}


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """What was asked for on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="networks to measure (again); none: the rest")
    parser.add_argument(
        "--analyse", action="store_true", help="the names given: no merges; what they gave stays"
    )
    parser.add_argument("--seconds", type=int, default=Limits().seconds, help="for one network")
    parser.add_argument(
        "--memory", type=int, default=Limits().memory, help="bytes, for one network"
    )
    parser.add_argument("--total", type=float, default=float("inf"), help="stop after this long")
    parser.add_argument("--folder", type=Path, default=DOCS)
    parser.add_argument("--page", action="store_true", help="only write the page again")
    return parser.parse_args(given)


def work_list(
    records: dict[str, Fields], names: list[str], only_analyse: bool
) -> list[tuple[str, bool]]:
    """Names, and whether only to analyse: every network is analysed before the first is merged.

    Merges take longer the larger a network is: the smallest come first.
    """
    if names:
        return [(name, only_analyse) for name in names]
    analyse = [(name, True) for name in MODELS if name not in records]
    merge = [n for n in MODELS if records.get(n, {}).get("status", "analysed") == "analysed"]
    merge.sort(key=lambda name: records.get(name, {}).get("parameters") or 0)
    return analyse + [(name, False) for name in merge]


def main() -> None:
    """Measure what is missing, or what was asked for, and write the documents after each."""
    asked = arguments()
    unknown = sorted(set(asked.names) - set(MODELS))
    if unknown:
        raise SystemExit(f"not in benchmarks/zoo/models.py: {', '.join(unknown)}")
    torch.set_num_threads(1)
    records = load(asked.folder / "coverage.json")
    todo = [] if asked.page else work_list(records, asked.names, asked.analyse)
    limits, end = Limits(asked.seconds, asked.memory), time.monotonic() + asked.total
    for number, (name, analysis_only) in enumerate(todo):
        if time.monotonic() > end:
            break
        if not analysis_only and not asked.names and records[name]["status"] != "analysed":
            continue
        record = measure(name, analysis_only, limits)
        if analysis_only:
            record = renewed(records.get(name, {}), record)
        print(f"{number + 1}/{len(todo)} {name}: {summary(record)}", flush=True)
        records = load(asked.folder / "coverage.json") | {name: record}  # others write there too
        store(records.values(), asked.folder)
    store(records.values(), asked.folder)


def summary(record: Fields) -> str:
    """One line for the terminal."""
    certificate = record.get("certificate") or {}
    figures = [
        f"certificate {certificate.get('max_error', float('nan')):.1e}",
        f"coverage {certificate.get('coverage', float('nan')):.3f}",
        *(f"{key} {record[key]:.2g}" for key in SHOWN if record.get(key) is not None),
        f"{sum(record['seconds'].values()):.0f} s",
    ]
    errors = [f"{step}: {text}" for step, text in record["errors"].items()]
    return "; ".join([record["status"], ", ".join(figures), *errors])


SHOWN = ("planted_error", "ensemble_error", "ensemble_flops", "merge_flops", "onnx_error")

if __name__ == "__main__":
    main()
