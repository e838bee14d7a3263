"""The inspector: what there is to see of a network and its permutation groups, and where."""

from __future__ import annotations

from pleas_fx.inspector.build import build
from pleas_fx.inspector.layout import layout

__all__ = ["build", "layout"]
