"""The inspector: what there is to see of a network and its permutation groups."""

from __future__ import annotations

from pleas_fx.inspector.build import build

__all__ = ["build"]
