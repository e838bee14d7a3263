"""Merge trained CNNs with the same graph into one network of the size you want."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pleas_fx.api import count, export_onnx, load, merge, permutation_groups, plan
    from pleas_fx.calibration import PerSource
    from pleas_fx.errors import (
        ArtefactError,
        BudgetError,
        CalibrationError,
        ExportError,
        GraphError,
        IncompatibleModelsError,
        OptionError,
        PleasError,
        ResourceError,
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
            "GraphError",
            "IncompatibleModelsError",
            "OptionError",
            "PleasError",
            "ResourceError",
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
    "GraphError",
    "IncompatibleModelsError",
    "MergeResult",
    "OptionError",
    "PerSource",
    "PleasError",
    "ResourceError",
    "SourceError",
    "TraceError",
    "count",
    "export_onnx",
    "load",
    "merge",
    "permutation_groups",
    "plan",
]


def _require_own_passes() -> None:
    """``passes`` is installed beside this package; another package of that name may hide it."""
    spec = find_spec("passes")
    ours = Path(__file__).parent.parent / "passes" / "__init__.py"
    if spec is None or spec.origin is None or Path(spec.origin).resolve() != ours.resolve():
        found = spec.origin if spec is not None else "nothing"
        raise ImportError(f"pleas_fx needs its own package 'passes', but {found} hides it")


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'pleas_fx' has no attribute {name!r}")
    _require_own_passes()
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
