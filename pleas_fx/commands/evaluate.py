"""``pleas-fx evaluate``: accuracy of a saved network, and whether its ONNX file agrees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from pleas_fx.commands.artefacts import ONNX, saved_recipe
from pleas_fx.commands.output import Answer, Session, progress
from pleas_fx.commands.recipe import Recipe
from pleas_fx.errors import CalibrationError, OptionError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pleas_fx.calibration import Batches


@dataclass(frozen=True, slots=True)
class Question:
    """What to evaluate on. ``output``: labels are in the classes of this output alone.

    ``labels`` are read before those that a loader gives beside its images.
    """

    data: str
    labels: str | None = None
    output: int | None = None


def evaluate(current: Session, folder: Path, question: Question, given: Recipe) -> Answer:
    """Run a saved network on data; with labels (of their own, or a loader's), its accuracy.

    Without ``question.output``, labels count the classes of all outputs side by side: the first
    class of the second output comes after the last one of the first.
    """
    from pleas_fx.calibration import collect, labels_beside
    from pleas_fx.datasets import load_calibration, load_labels
    from pleas_fx.sources import load_model

    recipe = saved_recipe(folder).updated(given)
    with progress("evaluate") as report:
        report("load")
        model = load_model(str(folder))
        shape = recipe.input[0][1:] if recipe.input else None
        data = load_calibration(
            question.data,
            input_shape=shape,
            mean=recipe.mean,
            std=recipe.std,
            samples=recipe.samples,
        )
        batches = collect(data, expected=[shape] if shape else None)
        labels = load_labels(question.labels) if question.labels else labels_beside(data)
        report("run")
        outputs = _outputs(model, batches)
        report("ONNX Runtime")
        onnx = _onnx_agreement(folder / ONNX, batches, outputs)
    if onnx is None:
        current.note(f"{folder} has no {ONNX}: only the PyTorch network was run")
    return _answer(labels, question.output, batches.examples, outputs, onnx)


def _answer(
    labels: Tensor | None,
    only: int | None,
    examples: int,
    outputs: Sequence[Tensor],
    onnx: dict[str, float] | None,
) -> Answer:
    import torch

    rows = [{"output": k, "classes": int(o[0].numel())} for k, o in enumerate(outputs)]
    document: dict[str, Any] = {
        "command": "evaluate",
        "examples": examples,
        "outputs": rows,
        "onnx": onnx,
    }
    if labels is None:
        for row, output in zip(rows, outputs, strict=True):
            row["most_frequent"] = int(torch.mode(output.flatten(1).argmax(1)).values)
        return Answer(document, _text(document))
    if len(labels) != examples:
        raise CalibrationError(f"{len(labels)} labels for {examples} examples")
    document.update(accuracies(outputs, labels, only))
    return Answer(document, _text(document))


def accuracies(outputs: Sequence[Tensor], labels: Tensor, only: int | None) -> dict[str, Any]:
    """Accuracy per output on the examples of its classes, their mean, and over all classes."""
    import torch

    if any(output.dim() != 2 for output in outputs):
        raise OptionError("labels need outputs of shape (N, classes)")
    if only is not None:
        if not 0 <= only < len(outputs):
            raise OptionError(f"output {only}: the network has {len(outputs)}, counted from 0")
        outputs = [outputs[only]]
    total = sum(output.shape[1] for output in outputs)
    if int(labels.min()) < 0 or int(labels.max()) >= total:
        raise CalibrationError(
            f"labels are {int(labels.min())} to {int(labels.max())}, the network's classes "
            f"0 to {total - 1}"
        )
    found, first = [], 0
    for output in outputs:
        own = (labels >= first) & (labels < first + output.shape[1])
        right = output[own].argmax(1) == labels[own] - first
        found.append(float(right.double().mean()) if len(right) else None)
        first += output.shape[1]
    known = [a for a in found if a is not None]
    joint = (torch.cat(list(outputs), 1).argmax(1) == labels).double().mean()
    return {
        "accuracy": found,
        "task_average": sum(known) / len(known),
        "joint_accuracy": float(joint),
    }


def _outputs(model: nn.Module, batches: Batches) -> list[Tensor]:
    """Every output over all examples."""
    import torch
    from torch.utils._pytree import tree_leaves

    rows: list[list[Tensor]] = []
    with torch.no_grad():
        for batch in batches.batches:
            try:
                found = model(*batch)
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                shapes = ", ".join(str(tuple(t.shape)) for t in batch)
                raise CalibrationError(f"the network can't run on {shapes}: {reason}") from error
            rows.append([t for t in tree_leaves(found) if isinstance(t, torch.Tensor)])
    return [torch.cat(column) for column in zip(*rows, strict=True)]


def _onnx_agreement(
    path: Path, batches: Batches, outputs: Sequence[Tensor]
) -> dict[str, float] | None:
    """How far ONNX Runtime is off, and how often it chooses the same class; None: no file."""
    if not path.is_file():
        return None
    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    rows = [
        session.run(None, {n: t.numpy() for n, t in zip(names, batch, strict=True)})
        for batch in batches.batches
    ]
    error, same = 0.0, []
    for expected, column in zip(outputs, zip(*rows, strict=True), strict=True):
        wanted, found = expected.numpy(), np.concatenate(column)
        error = max(error, float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-30)))
        flat = (len(wanted), -1)
        agrees = found.reshape(flat).argmax(1) == wanted.reshape(flat).argmax(1)
        same.append(float(agrees.mean()))
    return {"max_error": error, "same_class": min(same)}


def _text(document: dict[str, Any]) -> tuple[Table | str, ...]:
    with_labels = "accuracy" in document
    table = Table("output", "classes", "accuracy" if with_labels else "most frequent class")
    for number, row in enumerate(document["outputs"]):
        if not with_labels:
            table.add_row(str(number), str(row["classes"]), str(row["most_frequent"]))
            continue
        figures = document["accuracy"]
        shown = figures[number] if number < len(figures) else None
        cell = "no examples" if shown is None else f"{shown:.2%}"
        table.add_row(str(number), str(row["classes"]), cell)
    lines = [f"{document['examples']} examples"]
    if with_labels:
        lines[0] += (
            f"; task average {document['task_average']:.2%}, "
            f"over all classes {document['joint_accuracy']:.2%}"
        )
    if document["onnx"]:
        onnx = document["onnx"]
        lines.append(
            f"ONNX Runtime: relative error {onnx['max_error']:.1e}, "
            f"the same class in {onnx['same_class']:.2%}"
        )
    return (table, *lines)
