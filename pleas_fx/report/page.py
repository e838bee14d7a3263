"""``report.html``: one page without scripts, network or files beside it."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

import yaml
from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from pleas_fx.report import figures, rows
from pleas_fx.report.data import plain
from pleas_fx.result import MergeResult

if TYPE_CHECKING:
    from passes.export import Parity

MOST = 12  # axes listed in a row; certificate.json has them all


def render(result: MergeResult, parity: Parity | None) -> str:
    """The whole report as one self-contained HTML page."""
    report, plan, symmetry = result.report, result.plan, result.symmetry
    styles = rows.lane_styles(plan)
    return (
        _environment()
        .get_template("page.html")
        .render(
            result=result,
            report=report,
            plan=plan,
            certificate=symmetry.certificate,
            parity=parity,
            names=rows.source_names(result),
            one=rows.mean_count(report.sources),
            sizes=rows.size_rows(result),
            legend=rows.legend(styles, plan.sources),
            groups=rows.group_rows(plan, rows.all_groups(symmetry), styles),
            scale=rows.full_width(plan),
            layers=rows.layer_rows(report.layers),
            frozen=rows.frozen_rows(symmetry.frozen),
            passes=rows.pass_rows(report.seconds),
            recipe=yaml.safe_dump(plain(result.recipe), sort_keys=False, allow_unicode=True),
        )
    )


def _environment() -> Environment:
    folder = files("pleas_fx.report")
    pages = {name: folder.joinpath(name).read_text("utf-8") for name in ("page.html", "parts.html")}
    environment = Environment(
        loader=DictLoader(pages),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        count=figures.count,
        number=figures.number,
        percent=figures.percent,
        ratio=figures.ratio,
        seconds=figures.seconds,
        memory=figures.memory,
        whole=figures.whole,
    )
    environment.globals["style"] = Markup(folder.joinpath("style.css").read_text("utf-8"))
    environment.globals["BAR"] = figures.BAR
    environment.globals["MOST"] = MOST
    return environment
