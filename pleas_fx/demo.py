"""The demonstration: the two fixture networks, merged in every way, measured and saved."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from pleas_fx.api import count, merge
from pleas_fx.calibration import PerSource
from pleas_fx.commands.output import Answer, progress
from pleas_fx.errors import ArtefactError, ExportError, SourceError

if TYPE_CHECKING:
    from pleas_fx.result import MergeResult, RecipeValue

CLASSES = 5  # of each network; the second one's labels begin here
BUDGETS = (0.25, 0.5, 1.0, 1.2, 2.0)
JOINT_BUDGETS = (0.5, 1.0)
BATCH = 50  # their activations stay in a processor's cache
ONNX_IMAGES = 200

Network = Callable[[Tensor], tuple[Tensor, ...]]


@dataclass(frozen=True, slots=True)
class Images:
    """The fixture networks and their data."""

    sources: tuple[nn.Module, ...]
    calibration: tuple[Tensor, ...]
    test: Tensor
    labels: Tensor


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table; sizes are relative to one source."""

    name: str
    accuracy: float
    params: float
    flops: float
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to merge."""

    name: str
    method: str
    budget: str
    size: float
    images: bool = True  # whether there are any to calibrate on


SEPARATE = (
    Variant("plain average", "average", "width", 1.0),
    Variant("permutation only", "permute", "width", 1.0),
    Variant("PLeaS (published)", "pleas-paper", "width", 1.0),
    *(Variant(f"side by side, {b:g}x FLOPs", "side-by-side", "flops", b) for b in (1.0, 0.5)),
    *(Variant(f"pleas-fx, {b:g}x FLOPs", "pleas", "flops", b) for b in BUDGETS),
    Variant("pleas-fx, 1x FLOPs, no images", "pleas", "flops", 1.0, images=False),
)


def run(out: Path) -> Answer:
    """Merge, measure, and write ``out/demo/`` and the tables beside it.

    Raises:
        SourceError: the current folder isn't a checkout with the fixtures in it.
    """
    images = fixtures()
    with progress("demo") as shown:
        report = _also_logged(shown)
        separate = list(separate_rows(images, report))
        joint, chosen = joint_rows(images, report)
        report("save")
        folder = chosen.save(out / "demo")
        error, same = onnx_agreement(folder / "merged.onnx", chosen.model, images.test)
    titles = ("one output for each network", "one output for all ten classes")
    tables = [_table(title, rows) for title, rows in zip(titles, (separate, joint), strict=True)]
    document = {
        "command": "demo",
        "separate": [asdict(row) for row in separate],
        "joint": [asdict(row) for row in joint],
        "network": str(folder),
        "onnx": {"max_error": error, "same_class": same, "images": ONNX_IMAGES},
    }
    _write(out, document, zip(titles, (separate, joint), strict=True))
    last = (
        f"{folder}: ten classes, 1x FLOPs. ONNX Runtime gives the same class for {same:.2%} of "
        f"{ONNX_IMAGES} test images, relative error {error:.1e}"
    )
    return Answer(document, (*tables, last))


def _also_logged(shown: Callable[[str], None]) -> Callable[[str], None]:
    """One line a step where there is no bar: minutes of silence look like a crash."""
    if sys.stderr.isatty():
        return shown

    def report(name: str) -> None:
        print(f"demo: {name}", file=sys.stderr, flush=True)

    return report


def fixtures() -> Images:
    """The fixture networks, their calibration images and the test set of a checkout."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        from fixtures import load
    except ImportError as error:
        raise SourceError(
            "the demo needs the fixtures: run it in a checkout of the repository"
        ) from error
    try:
        test, labels = load.test_set()
        return Images(load.sources(), load.calibration(), test, labels)
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise SourceError(f"the fixtures can't be read: {error}") from error


def separate_rows(images: Images, report: Callable[[str], None]) -> Iterator[Row]:
    """The sources, their ensemble, and every method with one output for each source."""
    example = images.test[:1]
    for number, source in enumerate(images.sources):
        outputs = _outputs(_single(source), images.test)
        yield Row(
            f"network {'AB'[number]}, its own classes",
            _own_accuracy(outputs[0], images.labels, number),
            1.0,
            1.0,
            None,
        )
    ensemble = _outputs(_ensemble(images.sources), images.test)
    yield Row("exact ensemble", task_average(ensemble, images.labels), 2.0, 2.0, None)
    for variant in SEPARATE:
        report(variant.name)
        yield _merged_row(images, variant, example)


def joint_rows(
    images: Images, report: Callable[[str], None]
) -> tuple[tuple[Row, ...], MergeResult]:
    """One output of all classes; and the network of the last budget."""
    ensemble = torch.cat(_outputs(_ensemble(images.sources), images.test), 1)
    rows = [Row("exact ensemble", _accuracy(ensemble, images.labels), 2.0, 2.0, None)]
    recipe: dict[str, RecipeValue] = {"sources": _SOURCES, "calibration": _CALIBRATION}
    for budget in JOINT_BUDGETS:
        name = f"pleas-fx, {budget:g}x FLOPs"
        report(f"{name}, joint")
        row, result = _joint_row(images, name, PerSource(images.calibration), budget, recipe)
        rows.append(row)
    report(f"{name}, owners unknown")
    unowned = torch.cat(images.calibration)
    rows.append(_joint_row(images, f"{name}, owners unknown", unowned, budget, None)[0])
    return tuple(rows), result


def _joint_row(
    images: Images,
    name: str,
    calibration: Tensor | PerSource,
    budget: float,
    recipe: Mapping[str, RecipeValue] | None,
) -> tuple[Row, MergeResult]:
    start = time.perf_counter()
    result = merge(
        images.sources,
        calibration,
        flops=budget,
        heads="joint",
        progress=False,
        recipe=recipe,
    )
    seconds = time.perf_counter() - start
    output = _outputs(_single(result.model), images.test)[0]
    sizes = _relative(images, result.model)
    return Row(name, _accuracy(output, images.labels), *sizes, seconds), result


# What the command line calls the fixtures, so that the saved recipe reproduces the network.
_SOURCES: list[RecipeValue] = [
    f"fixtures/resnet.py:{name}@fixtures/{name}.safetensors"
    for name in ("classes_0_4", "classes_5_9")
]
_CALIBRATION: list[RecipeValue] = [
    f"fixtures/load.py:{name}" for name in ("calibration_0_4", "calibration_5_9")
]


def _merged_row(images: Images, variant: Variant, example: Tensor) -> Row:
    start = time.perf_counter()
    options: dict[str, Any] = {variant.budget: variant.size}
    result = merge(
        images.sources,
        torch.cat(images.calibration) if variant.images else None,
        method=variant.method,
        progress=False,
        example_inputs=None if variant.images else example,
        **options,
    )
    seconds = time.perf_counter() - start
    accuracy = task_average(_outputs(_network(result.model), images.test), images.labels)
    return Row(variant.name, accuracy, *_relative(images, result.model), seconds)


def _relative(images: Images, model: nn.Module) -> tuple[float, float]:
    example = images.test[:1]
    base, merged = count(images.sources[0], example), count(model, example)
    return merged.params / base.params, merged.flops / base.flops


def _network(model: nn.Module) -> Network:
    return lambda batch: tuple(model(batch))


def _single(model: nn.Module) -> Network:
    return lambda batch: (model(batch),)


def _ensemble(models: Sequence[nn.Module]) -> Network:
    return lambda batch: tuple(model(batch) for model in models)


def _outputs(network: Network, images: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad():
        rows = [network(batch) for batch in torch.split(images, BATCH)]
    return tuple(torch.cat(column) for column in zip(*rows, strict=True))


def _accuracy(output: Tensor, labels: Tensor) -> float:
    return float((output.argmax(1) == labels).double().mean())


def _own_accuracy(output: Tensor, labels: Tensor, source: int) -> float:
    """Over the images of a source's classes."""
    own = labels // CLASSES == source
    return _accuracy(output[own], labels[own] - source * CLASSES)


def task_average(outputs: Sequence[Tensor], labels: Tensor) -> float:
    """The mean of the sources' accuracies, each on the images of its own classes."""
    found = [_own_accuracy(output, labels, source) for source, output in enumerate(outputs)]
    return sum(found) / len(found)


def onnx_agreement(path: Path, model: nn.Module, images: Tensor) -> tuple[float, float]:
    """Relative error of ONNX Runtime on test images, and how often the class is the same.

    Raises:
        ExportError: it answers with another class for more than one image in a hundred.
    """
    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    batch = images[:ONNX_IMAGES]
    found = session.run(None, {session.get_inputs()[0].name: batch.numpy()})[0]
    with torch.no_grad():
        expected = model(batch).numpy()
    error = float(np.abs(found - expected).max() / np.abs(expected).max())
    same = float((found.argmax(1) == expected.argmax(1)).mean())
    if same < 0.99:
        raise ExportError(f"{path}: ONNX Runtime gives the same class for only {same:.1%}")
    return error, same


def _cells(row: Row) -> tuple[str, ...]:
    seconds = "" if row.seconds is None else f"{row.seconds:.1f}"
    return row.name, f"{row.accuracy:.2%}", f"{row.params:.2f}", f"{row.flops:.2f}", seconds


HEADINGS = ("network", "accuracy", "parameters", "FLOPs", "seconds")


def _table(title: str, rows: Iterable[Row]) -> Table:
    table = Table(title=title)
    for number, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="right" if number else "left")
    for row in rows:
        table.add_row(*_cells(row))
    return table


def _markdown(title: str, rows: Iterable[Row]) -> str:
    lines = [f"## {title[0].upper()}{title[1:]}", "", "| " + " | ".join(HEADINGS) + " |"]
    lines.append("|---|" + "---:|" * (len(HEADINGS) - 1))
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _write(
    out: Path, document: dict[str, Any], tables: Iterable[tuple[str, Sequence[Row]]]
) -> None:
    text = "\n".join(_markdown(title, rows) for title, rows in tables)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "demo-table.md").write_text(text, encoding="utf-8")
        (out / "demo-table.json").write_text(json.dumps(document, indent=2), encoding="utf-8")
    except OSError as error:
        raise ArtefactError(f"{out}: can't be written ({error.strerror})") from error


if __name__ == "__main__":
    for part in run(Path("out")).text:
        Console().print(part)
