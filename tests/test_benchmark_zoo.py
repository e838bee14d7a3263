"""What an analysis done again leaves of a network's earlier record."""

from __future__ import annotations

from typing import Any

from benchmarks.zoo.run import OF_MERGES, renewed

MERGED: dict[str, Any] = {
    "name": "a",
    "status": "finished",
    "groups": 3,
    "errors": {"onnx": "differs"},
    "seconds": {"analyse": 5.0, "merge": 7.0},
    **dict.fromkeys(OF_MERGES, 1e-6),
}
ANALYSED: dict[str, Any] = {
    "name": "a",
    "status": "analysed",
    "groups": 4,
    "errors": {},
    "seconds": {"analyse": 2.0},
    **dict.fromkeys(OF_MERGES),
}


def test_figures_of_merges_survive_another_analysis() -> None:
    """The analysis is the new one."""
    record = renewed(MERGED, ANALYSED)
    assert record["groups"] == 4
    assert record["seconds"] == {"analyse": 2.0, "merge": 7.0}
    assert record["status"] == "finished"
    assert record["errors"] == {"onnx": "differs"}
    assert all(record[key] == 1e-6 for key in OF_MERGES)


def test_an_analysis_that_failed_is_all_there_is() -> None:
    """Merges of groups that can't be found any more mean nothing."""
    failed = {**ANALYSED, "status": "finished", "errors": {"analyse": "wrong"}}
    assert renewed(MERGED, failed) == failed
    assert renewed({}, ANALYSED) == ANALYSED
