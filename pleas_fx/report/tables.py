"""Plans, reports and certificates as plain dictionaries that any JSON reader takes."""

from __future__ import annotations

import dataclasses
import json
import math
import numbers
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pleas_fx.ir import (
    Certificate,
    Count,
    Frozen,
    Group,
    GroupPlan,
    LayerFit,
    Plan,
    Report,
    Symmetry,
    letters,
    members,
)
from pleas_fx.result import MergeResult

if TYPE_CHECKING:
    from passes.export import Parity

Table = dict[str, Any]


def plain(value: Any) -> Any:
    """The value made of dictionaries, lists and scalars; NaN and infinities become None."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (set, frozenset)):
        return [plain(v) for v in sorted(value)]
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Path):
        return value.as_posix()
    return str(value)


def to_json(value: Any) -> str:
    """Strict JSON, indented, with lists of numbers on one line."""
    text = json.dumps(plain(value), indent=2, allow_nan=False, ensure_ascii=False)
    for item in (r"-?\d[\d.eE+-]*", r"\[[-\d.eE+, ]*\]"):  # numbers, then lists of them
        lists = re.compile(rf"\[\n\s+((?:{item},\n\s+)*{item})\n\s+\]")
        text = lists.sub(lambda m: "[" + re.sub(r"\s+", " ", m[1]) + "]", text)
    return text + "\n"


def certificate_table(symmetry: Symmetry) -> Table:
    """The evidence for the groups, and what they leave out."""
    certificate: Certificate = symmetry.certificate
    return {
        **plain(certificate),
        "groups": [group_table(group) for group in symmetry.groups],
        "frozen": [frozen_table(frozen) for frozen in symmetry.frozen],
    }


def group_table(group: Group) -> Table:
    """One permutation group."""
    return {
        "group": int(group.id),
        "size": int(group.size),
        "axes": [f"{axis.key}.{axis.dim}" for axis in group.axes],
        "blocks": plain(group.blocks),
    }


def frozen_table(frozen: Frozen) -> Table:
    """One axis that may not move."""
    axis = f"{frozen.axis.key}.{frozen.axis.dim}"
    return {"axis": axis, "node": frozen.node, "reason": frozen.reason}


def plan_table(plan: Plan) -> Table:
    """Width and membership of every group."""
    return {
        "sources": plan.sources,
        "predicted_error": plain(plan.predicted_error),
        "note": plan.note,
        "groups": [group_plan_table(group) for group in plan.groups],
    }


def group_plan_table(group: GroupPlan) -> Table:
    """One group: how many channels are merged, kept and dropped, and which share a slot."""
    lanes: dict[str, Any] = {}
    for lane in group.lanes:
        rows = [[int(c) for c in row if c >= 0] for row in lane.channels]
        alone = len(members(lane.membership)) == 1
        own = lanes.setdefault(letters(lane.membership), [])
        own.extend([c for row in rows for c in row] if alone else rows)
    return {
        "group": int(group.group),
        "size": int(group.size),
        "slots": int(group.slots),
        "width": plain(group.width if group.size else math.nan),
        "merged": len(group.merged),
        "kept": [len(own) for own in group.kept],
        "dropped": [len(own) for own in group.dropped],
        "similarity": plain(group.similarity),
        "predicted_error": plain(group.predicted_error),
        "slots_by_membership": {name: len(rows) for name, rows in lanes.items()},
        "channels": lanes,
    }


def layer_table(layer: LayerFit) -> Table:
    """How well one layer was fitted."""
    table: Table = plain(layer)
    return table


def report_table(report: Report) -> Table:
    """Per layer, and in total."""
    return {
        "sources": [plain(count) for count in report.sources],
        "merged": plain(report.merged),
        "ratio": {
            "params": ratio(report.merged, report.sources, "params"),
            "flops": ratio(report.merged, report.sources, "flops"),
        },
        "seconds": plain(report.seconds),
        "peak_bytes": int(report.peak_bytes),
        "warnings": list(report.warnings),
        "layers": [layer_table(layer) for layer in report.layers],
    }


def ratio(merged: Count, sources: tuple[Count, ...], what: str) -> float | None:
    """The merged network's size relative to the mean source."""
    total = sum(int(getattr(count, what)) for count in sources)
    return int(getattr(merged, what)) * len(sources) / total if total else None


def result_table(result: MergeResult, parity: Parity | None = None) -> Table:
    """Everything known about a merge, apart from weights, certificate and recipe."""
    return {
        "inputs": [list(x.shape) for x in result.inputs],
        "outputs": list(result.output_names),
        "report": report_table(result.report),
        "plan": plan_table(result.plan),
        "onnx": None if parity is None else parity_table(parity),
    }


def parity_table(parity: Parity) -> Table:
    """How far the ONNX file is from the network."""
    table: Table = plain(parity)
    return {**table, "outputs": {name: plain(error) for name, error in parity.outputs}}
