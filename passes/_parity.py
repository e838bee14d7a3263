"""Comparison of an ONNX file with the network it was written from, in ONNX Runtime."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pleas_fx.errors import ExportError

Inputs = tuple[Tensor, ...]

SEED = 0x5EED  # none that an example is likely drawn with: the same numbers added make it larger
OTHER_BATCHES = (3, 2)  # the first that isn't the example's: a size baked in fails there


@dataclass(frozen=True, slots=True)
class Parity:
    """How far ONNX Runtime's outputs lie from the network's, relative to their largest value."""

    max_error: float
    outputs: tuple[tuple[str, float], ...]  # per output, over all batches
    batches: tuple[int, ...]
    exporter: str
    rounding: float = 0.0  # the network's own, in float32; known where the error is large

    def __str__(self) -> str:
        figures = ", ".join(f"{name} {error:.2e}" for name, error in self.outputs)
        return f"{figures} at batch {' and '.join(map(str, self.batches))}"


def batch_of(inputs: Inputs) -> int:
    """The batch size of inputs."""
    return next((len(x) for x in inputs if x.dim()), 1)


def outputs(network: nn.Module, inputs: Inputs) -> list[Tensor]:
    """All output tensors, in order."""
    try:
        with torch.no_grad():
            result = network(*(x.clone() for x in inputs))
    except Exception as error:
        message = f"the network fails at batch {batch_of(inputs)}: {first_line(error)}"
        raise ExportError(message) from error
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]


def compare(
    network: nn.Module,
    example: Inputs,
    path: Path,
    input_names: Sequence[str],
    output_names: Sequence[str],
) -> dict[int, dict[str, float]]:
    """The error of every output, at the example's batch and at another one.

    Raises:
        ExportError: ONNX Runtime doesn't load or run the file.
    """
    session = _session(path)
    errors, given = {}, batch_of(example)
    other = next(batch for batch in OTHER_BATCHES if batch != given)
    for batch in sorted((given, other)):
        inputs = example if batch == given else resized(example, batch)
        expected = outputs(network, inputs)
        found = _run(session, dict(zip(input_names, inputs, strict=True)), output_names, batch)
        pairs = zip(output_names, expected, found, strict=True)
        errors[batch] = {name: relative_error(a, b) for name, a, b in pairs}
    return errors


def own_rounding(network: nn.Module, example: Inputs, batches: Sequence[int]) -> float:
    """How far the network itself lies from its float64 values, on the inputs of :func:`compare`.

    Raises:
        ExportError: it doesn't run in float64.
    """
    precise = copy.deepcopy(network).double()
    found = 0.0
    for batch in batches:
        inputs = example if batch == batch_of(example) else resized(example, batch)
        doubled = tuple(x.double() if x.is_floating_point() else x for x in inputs)
        pairs = zip(outputs(precise, doubled), outputs(network, inputs), strict=True)
        found = max([found, *(relative_error(a, b) for a, b in pairs)])
    return found


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what matters is raised
    try:
        return onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(f"ONNX Runtime doesn't load it: {first_line(error)}") from error


def _run(
    session: onnxruntime.InferenceSession,
    inputs: dict[str, Tensor],
    output_names: Sequence[str],
    batch: int,
) -> list[Tensor]:
    read = {value.name for value in session.get_inputs()}  # an input nobody reads may be gone
    feed = {name: x.numpy() for name, x in inputs.items() if name in read}
    try:
        found = session.run(list(output_names), feed)
    except Exception as error:
        message = f"ONNX Runtime fails at batch {batch}: {first_line(error)}"
        raise ExportError(message) from error
    return [torch.as_tensor(value) for value in found]


def relative_error(expected: Tensor, found: Tensor) -> float:
    """Largest difference over the largest expected value; NaN or infinite when they don't fit."""
    if expected.shape != found.shape:
        return float("inf")
    if expected.numel() == 0:
        return 0.0
    difference = (expected.double() - found.double()).abs().max().item()
    scale = expected.double().abs().max().item()
    if scale == 0.0:
        return 0.0 if difference == 0.0 else float("inf")
    return difference / scale


def larger(a: float, b: float) -> float:
    """The larger error; NaN is larger than everything."""
    return a if a != a or a > b else b


def resized(example: Inputs, batch: int) -> Inputs:
    """Inputs like the example's with another batch size; floating-point rows all differ."""
    generator = torch.Generator().manual_seed(SEED)
    return tuple(_resized(x, batch, generator) if x.dim() else x for x in example)


def _resized(x: Tensor, batch: int, generator: torch.Generator) -> Tensor:
    rows = x[torch.arange(batch) % max(len(x), 1)]
    if not x.is_floating_point():
        return rows
    spread = float(x.std()) if x.numel() > 1 else 0.0
    noise = torch.randn(rows.shape, generator=generator)
    return rows + noise * (0.3 * spread if spread > 0 else 1.0)


def first_line(error: BaseException) -> str:
    """The first line of an error's root cause that says something."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
