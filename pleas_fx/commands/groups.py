"""``pleas-fx groups``: what may be permuted in a network, and the evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table

from pleas_fx.commands.inputs import Shape, inputs_for
from pleas_fx.commands.output import Answer, progress

if TYPE_CHECKING:
    from pleas_fx.ir import Group, Symmetry


def groups(model: str, shapes: Sequence[Shape]) -> Answer:
    """The permutation groups of a network, with their certificate."""
    from pleas_fx.api import permutation_groups
    from pleas_fx.sources import load_model

    with progress("groups") as report:
        report("load")
        network = load_model(model)
        report("analyse")
        symmetry = permutation_groups(network, inputs_for(network, shapes))
    return Answer(_document(symmetry), (_table(symmetry), *_summary(symmetry)))


def _document(symmetry: Symmetry) -> dict[str, Any]:
    return {
        "command": "groups",
        "groups": [
            {
                "group": int(group.id),
                "size": group.size,
                "axes": [list(axis) for axis in group.axes],
                "blocks": asdict(group.blocks) if group.blocks else None,
            }
            for group in symmetry.groups
        ],
        "frozen": [
            {"axis": list(frozen.axis), "node": frozen.node, "reason": frozen.reason}
            for frozen in symmetry.frozen
        ],
        "certificate": asdict(symmetry.certificate),
    }


def _table(symmetry: Symmetry) -> Table:
    table = Table("group", "channels", "axes (key.dimension)", title="permutation groups")
    for group in symmetry.groups:
        axes = " ".join(f"{key}.{dim}" for key, dim in group.axes)
        table.add_row(f"g{group.id}", _size(group), axes)
    for frozen in symmetry.frozen:
        where = f"{frozen.axis.key}.{frozen.axis.dim}: {frozen.reason} ({frozen.node})"
        table.add_row("frozen", "", where)
    return table


def _size(group: Group) -> str:
    if group.blocks is None:
        return str(group.size)
    return f"{group.blocks.count} blocks of {group.blocks.inner}"


def _summary(symmetry: Symmetry) -> tuple[str, ...]:
    certificate = symmetry.certificate
    verdict = "passed" if certificate.passed else "FAILED"
    caught = "caught" if certificate.negative_control_caught else "NOT caught"
    return (
        f"certificate {verdict}: relative error {certificate.max_error:.1e} over "
        f"{certificate.trials} random permutations in float64, wrong permutation {caught}",
        f"{certificate.coverage:.1%} of the weight axes can move",
    )
