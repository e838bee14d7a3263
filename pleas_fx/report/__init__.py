"""The report of a merge: one HTML page without scripts, fonts or anything from the network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined

from pleas_fx.report import view
from pleas_fx.result import MergeResult

if TYPE_CHECKING:
    from passes.export import Parity

__all__ = ["render"]


def render(result: MergeResult, parity: Parity | None = None) -> str:
    """The page; ``parity`` is what ``export_onnx`` returned, if there is an ONNX file."""
    environment = Environment(
        loader=PackageLoader("pleas_fx.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    certificate = result.symmetry.certificate
    groups = view.group_rows(result)
    peak = result.report.peak_bytes
    return environment.get_template("page.html.j2").render(
        sources=view.source_names(result),
        letters=[view.letter(s) for s in range(len(view.source_names(result)))],
        outputs=result.output_names,
        inputs=[" × ".join(map(str, x.shape)) for x in result.inputs],
        method=str(result.recipe.get("method", "")),
        totals=view.totals(result.report),
        certificate=certificate,
        certificate_error=view.number(certificate.max_error),
        coverage=view.percent(certificate.coverage),
        parity=parity,
        parity_error=view.number(None if parity is None else parity.max_error),
        groups=groups,
        legend=view.legend(groups),
        plan_error=view.number(result.plan.predicted_error),
        note=result.plan.note,
        layers=view.layer_rows(result.report.layers),
        frozen=view.frozen_rows(result.symmetry.frozen),
        seconds=view.second_rows(result.report.seconds),
        peak=f"{view.amount(peak)}B" if peak else "",
        warnings=result.report.warnings,
        recipe=view.recipe_text(result.recipe),
    )
