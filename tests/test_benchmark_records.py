"""The accuracy benchmark goes on from its own file and from what was published elsewhere."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.accuracy import run
from benchmarks.accuracy.measure import Setting
from benchmarks.accuracy.page import write
from benchmarks.accuracy.records import REFERENCE_CASE, Key, Record, Records
from benchmarks.accuracy.summary import ahead, cells
from benchmarks.accuracy.tasks import Store

VERSIONS = {"pleas": 2}
REFERENCE_METHODS = ("own", "ensemble")


@dataclass(frozen=True)
class Case:
    """A case by its key alone."""

    key: Key


def case(method: str, budget: float = 1.0) -> Case:
    """One of the narrow ResNet."""
    return Case(("disjoint", "resnet-narrow", 0, method, budget))


def record(method: str, accuracy: float, budget: float = 1.0) -> Record:
    """A figure of the narrow ResNet."""
    return Record(
        "disjoint", "resnet-narrow", 0, method, budget, accuracy, (accuracy,), 1.0, 1.0, 3.0
    )


def measured(folder: Path) -> Records:
    """A merge, a refusal, and two references that are one case."""
    records = Records(folder / "records.jsonl", VERSIONS)
    records.add(case("pleas"), [record("pleas", 0.9)])
    records.add(case("zipit"), [record("zipit", math.nan)])
    records.add(case(REFERENCE_CASE, 0.0), [record(m, 0.8, 0.0) for m in REFERENCE_METHODS])
    return records


def published(folder: Path, versions: dict[str, int]) -> Records:
    """Records of a machine that has the document only."""
    return Records(
        folder / "none.jsonl", versions, folder / "docs" / "accuracy.json", REFERENCE_METHODS
    )


def test_what_was_published_is_not_measured_again(tmp_path: Path) -> None:
    """Its seconds are of another machine and left out; the rest is the same."""
    write(measured(tmp_path), tmp_path / "docs")
    found = published(tmp_path, VERSIONS)
    for method, budget in (("pleas", 1.0), ("zipit", 1.0), (REFERENCE_CASE, 0.0)):
        assert case(method, budget) in found
    assert case("pleas", 0.5) not in found
    assert {r.method: r.accuracy for r in found if r.method != "zipit"} == {
        "pleas": 0.9, "own": 0.8, "ensemble": 0.8,
    }  # fmt: skip

    write(found, tmp_path / "again")
    again = (tmp_path / "again" / "accuracy.json").read_text()
    assert json.loads(again) == json.loads((tmp_path / "docs" / "accuracy.json").read_text())


def test_a_method_that_changed_is_measured_again(tmp_path: Path) -> None:
    """The version is published with the figure."""
    write(measured(tmp_path), tmp_path / "docs")
    assert case("pleas") not in published(tmp_path, {"pleas": 3})
    assert case("zipit") in published(tmp_path, {"pleas": 3})


def test_the_file_goes_before_the_document(tmp_path: Path) -> None:
    """A figure measured here isn't counted twice."""
    write(measured(tmp_path), tmp_path / "docs")
    both = Records(
        tmp_path / "records.jsonl",
        VERSIONS,
        tmp_path / "docs" / "accuracy.json",
        REFERENCE_METHODS,
    )
    assert len(list(both)) == len(list(published(tmp_path, VERSIONS))) == 4


def test_a_setting_with_other_sources_is_measured_again_as_a_whole(tmp_path: Path) -> None:
    """What was measured of the earlier ones doesn't come back from the file."""
    records = measured(tmp_path)
    records.forget("disjoint", "resnet-narrow", 0)
    assert list(records) == []
    assert case("zipit") not in records
    records.add(case("pleas"), [record("pleas", 0.7)])
    again = Records(tmp_path / "records.jsonl", VERSIONS)
    assert [r.accuracy for r in again if r.method == "pleas"] == [0.7]
    again.forget("disjoint", "resnet-narrow", 1)
    assert case("pleas") in again


@pytest.mark.parametrize(("own", "changed"), [((0.8, 0.9), False), ((0.8, 0.88), True)])
def test_sources_are_recognised_by_their_accuracy(
    own: tuple[float, float], changed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those of the same scenario with other images; what has no figure can't be told."""
    setting = Setting("disjoint-64", "resnet-narrow", 0)
    records = Records(tmp_path / "records.jsonl")
    monkeypatch.setattr(run, "sources", lambda *_: [])
    monkeypatch.setattr(run.Tests, "__init__", lambda *_: None)
    monkeypatch.setattr(run.Tests, "own", lambda *_: list(own))
    store = Store(tmp_path, tmp_path)
    assert not run.others(setting, records, store)
    found = Record("disjoint", "resnet-narrow", 0, "own", 0.0, 0.85, (0.8, 0.9), 1.0, 1.0, 0.0)
    records.add(case(REFERENCE_CASE, 0.0), [found])
    assert run.others(setting, records, store) == changed
    assert {"disjoint", "disjoint-joint", "disjoint-64"} <= set(run.alike("disjoint"))
    assert "fine-tunes" not in run.alike("disjoint")


def test_leads_are_means_over_settings_that_both_have(tmp_path: Path) -> None:
    """References have no budget of their own."""
    found = cells(measured(tmp_path))
    lead, count = ahead(found, ["disjoint"], "ensemble", 1.0)
    assert (round(lead, 6), count) == (0.1, 1)
    assert ahead(found, ["disjoint"], "zipit", 1.0)[1] == 0
    assert ahead(found, ["domains"], "ensemble", 1.0)[1] == 0
