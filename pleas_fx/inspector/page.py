"""The inspector's page: picture, certificate and tables in one file that fetches nothing."""

from __future__ import annotations

import base64
import hashlib
import math
from functools import cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from passes.certify import TOLERANCE
from pleas_fx.inspector import palette
from pleas_fx.inspector.drawing import draw, legend_of
from pleas_fx.inspector.layout import Layout
from pleas_fx.inspector.markup import clean
from pleas_fx.inspector.view import View
from pleas_fx.report.view import DASH, percent

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def render(view: View, layout: Layout, title: str) -> str:
    """The page. Its policy lets only our own script run, whatever the names in it contain."""
    script = _file("page.js")
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            title=title,
            policy=POLICY.format(digest=_digest(script)),
            styles=Markup(_styles()),
            script=Markup(script),
            picture=draw(view, layout),
            view=view,
            legend=legend_of(view),
            frozen_axes=sum(len(frozen.axes) for frozen in view.frozen),
            trunks=sum(group.trunk for group in view.groups),
            layers=sum(box.kind == "layer" for box in view.boxes),
            tolerance=f"{TOLERANCE:.0e}".replace("e-0", "e-"),
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("pleas_fx.inspector", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: clean(value) if type(value) is str else value,
    )
    environment.filters["figure"] = figure
    environment.filters["ending"] = ending
    environment.filters["of"] = lambda n, what: f"{n} {what}" if n == 1 else f"{n} {what}s"
    environment.filters["percent"] = percent
    return environment


def figure(value: float) -> str:
    """An error in two digits; a dash for what isn't a number."""
    return f"{value:.1e}" if math.isfinite(value) else DASH


def ending(path: str, letters: int = 24) -> str:
    """The end of a long path, which says more than its beginning."""
    return path if len(path) <= letters else f"…{path[1 - letters :]}"


def _styles() -> str:
    dark = palette.rules(palette.DARK)
    return (
        f"{_file('page.css')}\n{palette.rules(palette.LIGHT)}\n"
        f"@media screen and (prefers-color-scheme: dark) {{\n{dark}\n}}\n"
    )


@cache
def _file(name: str) -> str:
    return (files("pleas_fx.inspector") / name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
