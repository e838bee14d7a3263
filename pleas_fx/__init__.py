"""Merge trained CNNs with the same graph into one network of the size you want."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pleas_fx.api import count, export_onnx, load, merge, permutation_groups, plan
    from pleas_fx.calibration import PerSource
    from pleas_fx.errors import (
        ArtefactError,
        BudgetError,
        CalibrationError,
        ExportError,
        IncompatibleModelsError,
        OptionError,
        PleasError,
        SourceError,
        TraceError,
    )
    from pleas_fx.result import MergeResult

__version__ = "0.1.0"

_HOMES = {
    **dict.fromkeys(
        ("count", "export_onnx", "load", "merge", "permutation_groups", "plan"), "pleas_fx.api"
    ),
    "PerSource": "pleas_fx.calibration",
    "MergeResult": "pleas_fx.result",
    **dict.fromkeys(
        (
            "ArtefactError",
            "BudgetError",
            "CalibrationError",
            "ExportError",
            "IncompatibleModelsError",
            "OptionError",
            "PleasError",
            "SourceError",
            "TraceError",
        ),
        "pleas_fx.errors",
    ),
}

__all__ = [
    "ArtefactError",
    "BudgetError",
    "CalibrationError",
    "ExportError",
    "IncompatibleModelsError",
    "MergeResult",
    "OptionError",
    "PerSource",
    "PleasError",
    "SourceError",
    "TraceError",
    "count",
    "export_onnx",
    "load",
    "merge",
    "permutation_groups",
    "plan",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'pleas_fx' has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
