"""What all commands of this folder are asked: where trained networks and image sets lie."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.accuracy.tasks import Store

DOCS = Path(__file__).resolve().parents[2] / "docs"
FOLDER = Path.home() / ".cache" / "pleas_fx_benchmarks"


def parser(description: str | None) -> argparse.ArgumentParser:
    """To add to: ``--folder`` and ``--data`` are there."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--folder", type=Path, default=FOLDER, help="networks and records")
    result.add_argument("--data", type=Path, help="image sets; FOLDER/data by default")
    return result


def store(asked: argparse.Namespace) -> Store:
    """The networks and image sets asked for."""
    return Store(asked.folder / "networks", asked.data or asked.folder / "data")
