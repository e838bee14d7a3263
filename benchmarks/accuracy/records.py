"""The file of records, a JSON line each: what a run appends to and the page is made from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

Key = tuple[str, str, int, str, float]
FIRST = 1  # version


class Keyed(Protocol):
    """A case, by its key."""

    @property
    def key(self) -> Key: ...


@dataclass(frozen=True, slots=True)
class Record:
    """One measurement; sizes are relative to one source. A refusal has its reason as a note."""

    scenario: str
    architecture: str
    seed: int
    method: str
    budget: float
    accuracy: float
    parts: tuple[float, ...]
    flops: float
    params: float
    seconds: float
    note: str = ""

    def __str__(self) -> str:
        where = f"{self.scenario}/{self.architecture}/{self.seed}"
        return (
            f"{where} {self.method}@{self.budget:g}: {self.accuracy:.4f} "
            f"at {self.flops:.3f} FLOPs, {self.seconds:.1f} s {self.note}"
        )


class Records:
    """The records of this and of earlier runs.

    ``versions``: of methods that have changed; what was measured with an earlier one is left out.
    """

    def __init__(self, path: Path, versions: Mapping[str, int] | None = None) -> None:
        self.path = path
        self.versions = versions or {}
        self.all: list[Record] = []
        self._done: set[Key] = set()
        if path.exists():
            for line in path.read_text().splitlines():
                self._take(json.loads(line))

    def __iter__(self) -> Iterator[Record]:
        return iter(self.all)

    def __contains__(self, case: Keyed) -> bool:
        return case.key in self._done

    def add(self, case: Keyed, records: list[Record]) -> None:
        """Append what a case gave."""
        version = self.versions.get(case.key[3], FIRST)
        line = {"case": case.key, "version": version, "records": [asdict(r) for r in records]}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self._take(line)

    def _take(self, line: Mapping[str, object]) -> None:
        case, records = line["case"], line["records"]
        assert isinstance(case, (list, tuple))
        assert isinstance(records, list)
        scenario, architecture, seed, method, budget = case
        if line.get("version", FIRST) != self.versions.get(method, FIRST):
            return
        self._done.add((scenario, architecture, seed, method, budget))
        self.all += [Record(**{**r, "parts": tuple(r["parts"])}) for r in records]
