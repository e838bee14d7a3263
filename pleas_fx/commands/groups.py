"""``pleas-fx groups``: what may be permuted in a network, and the evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from pleas_fx.commands.inputs import Shape, inputs_for
from pleas_fx.commands.output import Answer, progress, write_file
from pleas_fx.inspector.markup import clean

if TYPE_CHECKING:
    from pleas_fx.inspector.view import FrozenView, GroupView, LayerUse
    from pleas_fx.ir import Certificate, Program, Symmetry

FEW = 4  # layers and axes that a row of a table names in full


def groups(model: str, shapes: Sequence[Shape], html: Path | None = None) -> Answer:
    """The permutation groups of a network, with their certificate, and as a page."""
    from pleas_fx.api import analyse
    from pleas_fx.inspector.legend import frozen_views, group_views
    from pleas_fx.sources import load_model

    with progress("groups") as report:
        report("load")
        network = load_model(model)
        report("analyse")
        program, symmetry = analyse(network, inputs_for(network, shapes))
        if html is not None:
            report("draw")
            write_file(html, _page(program, symmetry, model))
    views, frozen = group_views(program, symmetry), frozen_views(symmetry)
    text = [_table(views)] + ([_frozen_table(frozen)] if frozen else [])
    written = (f"written to {html}",) if html is not None else ()
    return Answer(
        _document(symmetry, views, html),
        (*text, *_summary(symmetry.certificate), *written),
    )


def _page(program: Program, symmetry: Symmetry, title: str) -> str:
    from pleas_fx.inspector import build, layout, render

    view = build(program, symmetry)
    return render(view, layout(view), title)


def _document(symmetry: Symmetry, views: Sequence[GroupView], html: Path | None) -> dict[str, Any]:
    written = {} if html is None else {"html": str(html)}
    return {
        "command": "groups",
        **written,
        "groups": [
            {
                "group": int(group.id),
                "size": group.size,
                "blocks": asdict(group.blocks) if group.blocks else None,
                "adds": view.adds,
                "layers": [use.layer for use in view.layers],
                "axes": [list(axis) for axis in group.axes],
            }
            for group, view in zip(symmetry.groups, views, strict=True)
        ],
        "frozen": [
            {"axis": list(frozen.axis), "node": frozen.node, "reason": frozen.reason}
            for frozen in symmetry.frozen
        ],
        "certificate": asdict(symmetry.certificate),
    }


def _table(views: Sequence[GroupView]) -> Table:
    table = Table(title="permutation groups", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("group")
    table.add_column("channels", justify="right", no_wrap=True)
    table.add_column("axes", justify="right")
    table.add_column("residual", no_wrap=True)
    table.add_column("layers", overflow="fold")
    for view in views:
        adds = f"{view.adds} add{'s' * (view.adds > 1)}" if view.adds else ""
        layers = clean(_layers(view.layers))
        table.add_row(view.name, view.structure, str(view.axes), adds, layers)
    return table


def _frozen_table(frozen: Sequence[FrozenView]) -> Table:
    table = Table(title="frozen axes", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("reason", "node", "axes (key.dimension)"):
        table.add_column(column, overflow="fold")
    for view in frozen:
        axes = [f"{key}.{dim}" for key, dim in view.axes]
        table.add_row(*map(clean, (view.reason, view.node, _some(axes, "axes"))))
    return table


def _layers(uses: Sequence[LayerUse]) -> str:
    """``layer1.0.{conv1, bn1, conv2}``, or the ends of a long list and its length."""
    names = [use.layer for use in uses]
    if not 1 < len(names) <= FEW:
        return _some(names, "layers")
    levels = zip(*(name.split(".")[:-1] for name in names), strict=False)
    shared = [level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels)]
    if not shared:
        return ", ".join(names)
    prefix = ".".join(shared)
    return f"{prefix}.{{{', '.join(name[len(prefix) + 1 :] for name in names)}}}"


def _some(names: Sequence[str], what: str) -> str:
    if len(names) <= FEW:
        return ", ".join(names)
    return f"{names[0]}, {names[1]} … {names[-1]} ({len(names)} {what})"


def _summary(certificate: Certificate) -> tuple[str, ...]:
    verdict = "passed" if certificate.passed else "FAILED"
    caught = "caught" if certificate.negative_control_caught else "NOT caught"
    return (
        f"certificate {verdict}: relative error {certificate.max_error:.1e} over "
        f"{certificate.trials} random permutations in float64, wrong permutation {caught}",
        f"{certificate.coverage:.1%} of the weight axes can move",
    )
