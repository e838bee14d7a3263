"""The accuracy benchmark goes on from its own file and from what was published elsewhere."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.accuracy import measure, run
from benchmarks.accuracy.page import write
from benchmarks.accuracy.records import REFERENCE_CASE, Key, Record, Records
from benchmarks.accuracy.scenarios import ORIGINS
from benchmarks.accuracy.sources import fingerprint
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


def of_sources(sources: str, method: str = "pleas") -> tuple[Case, list[Record]]:
    """What a method gave for them."""
    return case(method), [replace(record(method, 0.7), sources=sources)]


def test_records_are_of_one_set_of_sources(tmp_path: Path) -> None:
    """Of the last that was measured, here before elsewhere; of the document, only the same."""
    first = measured(tmp_path)
    write(first, tmp_path / "docs")
    first.add(*of_sources("others"))
    again = Records(tmp_path / "records.jsonl", VERSIONS)
    for records in (first, again, ours(tmp_path)):
        assert [(r.method, r.accuracy) for r in records] == [("pleas", 0.7)]

    write(first, tmp_path / "docs")
    first.add(*of_sources("others", "zipit"))
    assert {r.method for r in ours(tmp_path)} == {"pleas", "zipit"}
    assert {r.sources for r in published(tmp_path, VERSIONS)} == {"others"}


def ours(folder: Path) -> Records:
    """The file and the document."""
    document = folder / "docs" / "accuracy.json"
    return Records(folder / "records.jsonl", VERSIONS, document, REFERENCE_METHODS)


def test_scenarios_with_the_same_sources_are_settled_together(tmp_path: Path) -> None:
    """They differ in images, tags or outputs; a fine-tune's sources are its own."""
    joint = ("disjoint-joint", "resnet-narrow", 0)
    records = Records(tmp_path / "records.jsonl", origins=ORIGINS)
    records.add(*of_sources("first"))
    assert records.sources(*joint) == "first"
    assert records.sources("disjoint-64", "resnet-narrow", 1) is None
    records.settle(*joint, "first")
    assert case("pleas") in records
    records.settle(*joint, "second")
    assert case("pleas") not in records
    alike = {name for name, origin in ORIGINS.items() if origin == "disjoint"}
    assert {"disjoint", "disjoint-joint", "disjoint-64", "disjoint-free"} <= alike
    assert "fine-tunes" not in alike


@pytest.mark.parametrize("changed", [False, True])
def test_where_something_is_missing_the_sources_must_be_those_measured(
    changed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else all of it is missing. Where nothing is, none are trained to be looked at."""
    records = measured(tmp_path)
    records.settle("disjoint", "resnet-narrow", 0, "")
    wanted = [measure.Case(measure.Setting(*c.key[:3]), *c.key[3:]) for c in (case("pleas"),)]
    monkeypatch.setattr(measure, "sources", lambda *_: pytest.fail("trained for nothing"))
    measure.settle(wanted, records, Store(tmp_path, tmp_path))

    wanted.append(replace(wanted[0], budget=0.5))
    monkeypatch.setattr(measure, "sources", lambda *_: [])
    monkeypatch.setattr(measure, "fingerprint", lambda _: "others" if changed else "")
    measure.settle(wanted, records, Store(tmp_path, tmp_path))
    assert (case("pleas") not in records) == changed


def test_processes_share_no_network_and_repeat_nothing(tmp_path: Path) -> None:
    """A share is all of one architecture and seed that lacks something, in the order of asking."""
    records = measured(tmp_path)
    keys = [("disjoint", 0, "zipit"), ("domains", 0, "zipit"), ("disjoint", 1, "zipit")] * 2
    wanted = [
        measure.Case(measure.Setting(name, "resnet-narrow", seed), method, 1.0)
        for name, seed, method in keys
    ]
    assert wanted[0] in records
    assert run.shares(wanted, records) == [wanted[:2], [wanted[2]]]
    assert run.shares(wanted[:1], records) == []


def test_a_fingerprint_tells_one_rounding() -> None:
    """The same weights have the same; the last bit of one makes another."""
    model = nn.Linear(3, 2)
    twin = copy.deepcopy(model)
    assert fingerprint([model]) == fingerprint([twin]) != fingerprint([model, twin])
    with torch.no_grad():
        twin.weight[0, 0] = torch.nextafter(twin.weight[0, 0], torch.tensor(9.0))
    assert fingerprint([model]) != fingerprint([twin])


def test_leads_are_means_over_settings_that_both_have(tmp_path: Path) -> None:
    """References have no budget of their own."""
    found = cells(measured(tmp_path))
    lead, count = ahead(found, ["disjoint"], "ensemble", 1.0)
    assert (round(lead, 6), count) == (0.1, 1)
    assert ahead(found, ["disjoint"], "zipit", 1.0)[1] == 0
    assert ahead(found, ["domains"], "ensemble", 1.0)[1] == 0
