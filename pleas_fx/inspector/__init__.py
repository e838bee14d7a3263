"""The inspector: a page that draws a network with every permutation group in its colour.

``build`` says what is shown, ``layout`` where, ``draw`` and ``render`` how.
"""

from __future__ import annotations

from pleas_fx.inspector.build import build
from pleas_fx.inspector.layout import layout
from pleas_fx.inspector.page import render

__all__ = ["build", "layout", "render"]
