"""Measure the zoo, a process a network; what is already in ``docs/coverage.json`` is kept."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.zoo.models import MODELS
from benchmarks.zoo.page import page

DOCS = Path(__file__).resolve().parents[2] / "docs"
SECONDS, MEMORY = 300.0, 12 << 30

Fields = dict[str, Any]


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


def measure(name: str, seconds: float, memory: int) -> Fields:
    """The record of one network, or as far as its process came within the limits."""
    command = [sys.executable, "-m", "benchmarks.zoo.worker", name, str(memory)]
    threads = {"OMP_NUM_THREADS": "1", **os.environ}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=threads
    ) as process:
        try:
            out, err = process.communicate(timeout=seconds)
            ending = f"ended with code {process.returncode}: {err.strip()[-200:]}"
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            ending = f"more than {seconds:.0f} s"
    lines = [line for line in out.splitlines() if line.startswith("{")]
    record: Fields = json.loads(lines[-1]) if lines else {"name": name, "errors": {}, "seconds": {}}
    if record.get("status") != "finished":
        record["status"] = ending
    return record


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """What was asked for on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="networks to measure (again); none: the rest")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="limit for one network")
    parser.add_argument("--memory", type=int, default=MEMORY, help="limit for one network, bytes")
    parser.add_argument("--total", type=float, default=float("inf"), help="stop after this long")
    parser.add_argument("--folder", type=Path, default=DOCS)
    parser.add_argument("--page", action="store_true", help="only write the page again")
    return parser.parse_args(given)


def main() -> None:
    """Measure what is missing, or what was asked for, and write the documents after each."""
    asked = arguments()
    unknown = sorted(set(asked.names) - set(MODELS))
    if unknown:
        raise SystemExit(f"not in benchmarks/zoo/models.py: {', '.join(unknown)}")
    records = load(asked.folder / "coverage.json")
    todo = [] if asked.page else asked.names or [n for n in MODELS if n not in records]
    started = time.monotonic()
    for number, name in enumerate(todo):
        if time.monotonic() - started > asked.total:
            break
        records[name] = measure(name, asked.seconds, asked.memory)
        print(f"{number + 1}/{len(todo)} {name}: {summary(records[name])}", flush=True)
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
