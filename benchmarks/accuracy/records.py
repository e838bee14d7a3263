"""The records that the page is made from: those in ``docs``, and a file that a run adds to."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

Key = tuple[str, str, int, str, float]
Where = tuple[str, str, int]  # scenario, architecture, seed
FIRST = 1  # version
REFERENCE_CASE = "references"  # the case of everything that is no merge


class Keyed(Protocol):
    """A case, by its key."""

    @property
    def key(self) -> Key: ...


@dataclass(frozen=True, slots=True)
class Record:
    """One measurement; sizes are relative to one source. A refusal has its reason as a note.

    ``sources``: the fingerprint of the networks that were merged, empty where it isn't known.
    """

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
    sources: str = ""

    def __str__(self) -> str:
        where = f"{self.scenario}/{self.architecture}/{self.seed}"
        return (
            f"{where} {self.method}@{self.budget:g}: {self.accuracy:.4f} "
            f"at {self.flops:.3f} FLOPs, {self.seconds:.1f} s {self.note}"
        )


class Records:
    """The records of this and of earlier runs, of each setting those of one set of sources.

    ``versions``: of methods that have changed; what was measured with an earlier one is left out.
    ``published``: the document of an earlier run, here or elsewhere; the file goes before it.
    ``origins``: by scenario, the one that it shares its sources with.
    """

    def __init__(
        self,
        path: Path,
        versions: Mapping[str, int] | None = None,
        published: Path | None = None,
        references: Collection[str] = (),
        origins: Mapping[str, str] | None = None,
    ) -> None:
        self.path = path
        self.versions = versions or {}
        self.origins = origins or {}
        self._found: dict[Key, list[Record]] = {}
        self._sources: dict[Where, str] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                self._take(json.loads(line))
        if published is not None and published.exists():
            for case in _cases(json.loads(published.read_text()), references):
                own = self.sources(*case["case"][:3])
                if case["case"] not in self._found and own in (None, _sources(case)):
                    self._take(case)

    def version(self, method: str) -> int:
        """The one whose records count."""
        return self.versions.get(method, FIRST)

    def __iter__(self) -> Iterator[Record]:
        return chain.from_iterable(self._found.values())

    def __contains__(self, case: Keyed) -> bool:
        return case.key in self._found

    def sources(self, scenario: str, architecture: str, seed: int) -> str | None:
        """The fingerprint of a setting's sources; None where nothing was measured."""
        return self._sources.get(self._where(scenario, architecture, seed))

    def settle(self, scenario: str, architecture: str, seed: int, sources: str) -> None:
        """Keep only what was measured of these sources, also in scenarios that share them."""
        where = self._where(scenario, architecture, seed)
        if self._sources.get(where, sources) != sources:
            self._found = {k: own for k, own in self._found.items() if self._where(*k[:3]) != where}
        self._sources[where] = sources

    def _where(self, scenario: str, architecture: str, seed: int) -> Where:
        return self.origins.get(scenario, scenario), architecture, seed

    def add(self, case: Keyed, records: list[Record]) -> None:
        """Append what a case gave."""
        version = self.version(case.key[3])
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
        if line.get("version", FIRST) != self.version(method):
            return
        key = (scenario, architecture, seed, method, budget)
        self.settle(scenario, architecture, seed, _sources(line))
        self._found[key] = [Record(**{**r, "parts": tuple(r["parts"])}) for r in records]


def _sources(line: Mapping[str, Any]) -> str:
    return next((str(r.get("sources", "")) for r in line["records"]), "")


def _cases(rows: Iterable[Mapping[str, Any]], references: Collection[str]) -> list[dict[str, Any]]:
    """Published rows as lines of a file of records; those of one case together."""
    found: dict[Key, dict[str, Any]] = {}
    for row in rows:
        known: dict[str, Any] = {k: math.nan if v is None else v for k, v in row.items()}
        version = known.pop("version", FIRST)
        record: dict[str, Any] = {"seconds": 0.0, **known}
        method = REFERENCE_CASE if record["method"] in references else record["method"]
        where = (record["scenario"], record["architecture"], record["seed"])
        key: Key = (*where, method, record["budget"])
        line = found.setdefault(key, {"case": key, "version": version, "records": []})
        line["records"].append(record)
    return list(found.values())
