"""The evidence of a merge as plain dictionaries: strict JSON, NaN and infinity as null."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from pleas_fx.ir import Count, Group, GroupPlan, Plan, Report, Symmetry, letters
from pleas_fx.result import MergeResult

if TYPE_CHECKING:
    from passes.export import Parity

Json: TypeAlias = str | float | int | bool | list["Json"] | dict[str, "Json"] | None

VERSION = 1  # of both dictionaries; raised when a key changes its meaning or goes away


def strict_json(value: object) -> str:
    """Indented JSON that every parser reads: no NaN, no infinity, a newline at the end."""
    return json.dumps(plain(value), indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def plain(value: object) -> Json:
    """A value as JSON knows it; tuples become lists, NaN and infinity null, the rest its text."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {str(key): plain(entry) for key, entry in value.items()}
        case list() | tuple():
            return [plain(entry) for entry in value]
        case np.generic():
            return plain(value.item())
    return str(value)


def merge_report(result: MergeResult, parity: Parity | None) -> dict[str, Json]:
    """``report.json``: plan, layers, sizes, seconds, warnings and ONNX parity."""
    return {
        "version": VERSION,
        "inputs": [{"shape": list(x.shape), "dtype": _dtype(x.dtype)} for x in result.inputs],
        "output_names": list(result.output_names),
        "plan": _plan(result.plan),
        "report": _report(result.report),
        "parity": None if parity is None else _parity(parity),
    }


def certificate(symmetry: Symmetry) -> dict[str, Json]:
    """``certificate.json``: what was tested, the groups it was tested on, and what may not move."""
    tested = plain(asdict(symmetry.certificate))
    assert isinstance(tested, dict)
    return {
        "version": VERSION,
        **tested,
        "groups": [_group(group) for group in symmetry.groups],
        "frozen": [
            {"axis": [f.axis.key, f.axis.dim], "node": f.node, "reason": f.reason}
            for f in symmetry.frozen
        ],
    }


def _group(group: Group) -> Json:
    return {
        "id": int(group.id),
        "size": group.size,
        "axes": [[key, dim] for key, dim in group.axes],
        "blocks": None if group.blocks is None else plain(asdict(group.blocks)),
    }


def _plan(plan: Plan) -> Json:
    return {
        "sources": plan.sources,
        "predicted_error": plain(plan.predicted_error),
        "note": plan.note,
        "groups": [_group_plan(group) for group in plan.groups],
    }


def _group_plan(group: GroupPlan) -> Json:
    return {
        "group": int(group.group),
        "size": group.size,
        "slots": group.slots,
        "width": group.width,
        "similarity": plain(group.similarity),
        "predicted_error": plain(group.predicted_error),
        "lanes": {letters(lane.membership): len(lane) for lane in group.lanes},
        "merged": plain(group.merged),
        "kept": plain(group.kept),
        "dropped": plain(group.dropped),
    }


def _report(report: Report) -> Json:
    return {
        "layers": plain([asdict(layer) for layer in report.layers]),
        "sources": _counts(report.sources),
        "merged": plain(asdict(report.merged)),
        "seconds": plain(report.seconds),
        "peak_bytes": report.peak_bytes,
        "warnings": plain(report.warnings),
    }


def _counts(counts: Iterable[Count]) -> Json:
    return [plain(asdict(count)) for count in counts]


def _parity(parity: Parity) -> Json:
    return {
        "max_error": plain(parity.max_error),
        "outputs": {name: plain(error) for name, error in parity.outputs},
        "batches": list(parity.batches),
        "exporter": parity.exporter,
    }


def _dtype(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")
