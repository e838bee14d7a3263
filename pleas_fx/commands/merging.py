"""``pleas-fx merge`` and ``pleas-fx plan``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from pleas_fx.commands.artefacts import check_free
from pleas_fx.commands.inputs import device as device_of
from pleas_fx.commands.inputs import example_inputs, numbers, shape
from pleas_fx.commands.output import Answer, Session, progress
from pleas_fx.commands.recipe import BUDGETS, COUNTS, Recipe, read
from pleas_fx.errors import OptionError

if TYPE_CHECKING:
    from pleas_fx.ir import Count, GroupPlan, Plan
    from pleas_fx.result import MergeResult

OUT = "out/merged"
DATA_FREE = "no calibration data: what the sources' batch norms keep, or weights, stand in for it"


def given(typed: Mapping[str, Any]) -> Recipe:
    """The part of a recipe that is on the command line; ``typed`` are a command's arguments."""
    data = typed.get("calibration") or None
    named = (*COUNTS, *BUDGETS, "heads", "method", "seed", "out")
    return Recipe(
        calibration=data[0] if data is not None and len(data) == 1 else data and tuple(data),
        mean=numbers(typed.get("mean"), "mean"),
        std=numbers(typed.get("std"), "std"),
        input=tuple(shape(text) for text in typed.get("input") or ()),
        **{name: typed[name] for name in named if name in typed},
    )


def complete(models: tuple[str, ...], given: Recipe) -> Recipe:
    """The whole recipe: from a YAML file when that is the only 'model', else from the options."""
    if len(models) == 1 and models[0].endswith((".yaml", ".yml")):
        return read(Path(models[0])).updated(given)
    return Recipe(sources=models).updated(given)


def merge(current: Session, recipe: Recipe, device: str | None) -> Answer:
    """Merge, save the artefact, and say what came out."""
    from pleas_fx.api import merge as merge_models

    out = Path(recipe.out or OUT)
    check_free(out)
    arguments = _arguments(current, recipe, device)
    with progress("merge") as report:
        result = merge_models(**arguments, progress=report, recipe=recipe.origin())
        report("save")
        folder = result.save(out)
    return _merged(result, folder)


def plan(current: Session, recipe: Recipe, device: str | None) -> Answer:
    """What a merge would do with every group."""
    from pleas_fx.api import plan as plan_models

    arguments = _arguments(current, recipe, device)
    arguments.pop("distil", None)  # a plan is what it is before
    with progress("plan") as report:
        found = plan_models(**arguments, progress=report)
    return Answer({"command": "plan", **plan_document(found)}, (_plan_table(found),))


def _arguments(current: Session, recipe: Recipe, device: str | None) -> dict[str, Any]:
    from pleas_fx.sources import load_model

    if recipe.calibration is None and not recipe.input:
        raise OptionError("give --calibration DATA, or --input SHAPE to merge without data")
    where = device_of(device)
    arguments: dict[str, Any] = {
        "models": [load_model(spec) for spec in recipe.sources],
        "calibration": _calibration(recipe),
        "device": where,
        **recipe.options(),
    }
    if recipe.input:
        arguments["example_inputs"] = example_inputs(recipe.input)
    if recipe.calibration is None:
        current.note(DATA_FREE)
    return arguments


def _calibration(recipe: Recipe) -> object:
    from pleas_fx.calibration import PerSource
    from pleas_fx.datasets import load_calibration

    options = {
        "input_shape": recipe.input[0][1:] if recipe.input else None,
        "mean": recipe.mean,
        "std": recipe.std,
        "samples": recipe.samples,
    }
    given = recipe.calibration
    if given is None:
        return None
    if isinstance(given, str):
        return load_calibration(given, **options)  # type: ignore[arg-type]
    if len(given) != len(recipe.sources):
        raise OptionError(
            f"calibration: {len(given)} for {len(recipe.sources)} models; give one for all, "
            "or one for each"
        )
    return PerSource([load_calibration(spec, **options) for spec in given])  # type: ignore[arg-type]


def _merged(result: MergeResult, folder: Path) -> Answer:
    report = result.report
    base = report.sources[0]
    document = {
        "command": "merge",
        "out": str(folder),
        "sources": [_size(c, base) for c in report.sources],
        "merged": _size(report.merged, base),
        "outputs": list(result.output_names),
        "seconds": dict(report.seconds),
        "warnings": list(report.warnings),
        "plan": plan_document(result.plan),
    }
    table = Table("network", "parameters", "FLOPs", "relative", title="merged")
    for number, size in enumerate(report.sources):
        table.add_row(f"source {number}", *_size_cells(size, base))
    table.add_row("merged", *_size_cells(report.merged, base))
    seconds = sum(report.seconds.values())
    lines = [f"warning: {text}" for text in report.warnings]
    return Answer(document, (table, *lines, f"written to {folder} in {seconds:.1f} s"))


def _size(count: Count, base: Count) -> Mapping[str, float]:
    return {
        "params": count.params,
        "flops": count.flops,
        "relative_params": count.params / max(base.params, 1),
        "relative_flops": count.flops / max(base.flops, 1),
    }


def _size_cells(count: Count, base: Count) -> tuple[str, str, str]:
    relative = f"{count.params / max(base.params, 1):.2f}x, {count.flops / max(base.flops, 1):.2f}x"
    return f"{count.params:,}", f"{count.flops:,}", relative


def plan_document(plan: Plan) -> dict[str, Any]:
    """A plan as plain values."""
    return {
        "sources": plan.sources,
        "predicted_error": plan.predicted_error,
        "note": plan.note,
        "groups": [_group_document(group) for group in plan.groups],
    }


def _group_document(group: GroupPlan) -> dict[str, Any]:
    return {
        "group": int(group.group),
        "size": group.size,
        "slots": group.slots,
        "width": group.width,
        "similarity": group.similarity,
        "predicted_error": group.predicted_error,
        "merged": group.merged,
        "kept": group.kept,
        "dropped": group.dropped,
    }


def _plan_table(plan: Plan) -> Table:
    table = Table("group", "size", "width", "merged", "kept", "dropped", "similarity", "error")
    for group in plan.groups:
        table.add_row(
            f"g{group.group}",
            str(group.size),
            f"{group.width:.2f}x",
            str(len(group.merged)),
            " + ".join(str(len(own)) for own in group.kept),
            " + ".join(str(len(own)) for own in group.dropped),
            f"{group.similarity:.3f}",
            f"{group.predicted_error:.3g}",
        )
    table.caption = plan.note or None
    return table
