"""Write a network as ONNX and prove that the file computes the same.

torch.export's exporter comes first, the older TorchScript exporter where that one fails. A file
reaches its place only after onnx.checker and a comparison with ONNX Runtime.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime
import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from pleas_fx.errors import ExportError

OPSET = 18
SINGLE_FILE = 1_900_000_000  # bytes; protobuf ends at 2 GiB, larger weights go to a .data file
OTHER_BATCH = 3  # a batch size that is never the one an exporter sees

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Parity:
    """How far ONNX Runtime's outputs lie from the network's, relative to their largest value."""

    max_error: float
    outputs: tuple[tuple[str, float], ...]  # per output, over all batches
    batches: tuple[int, ...]
    exporter: str

    def __str__(self) -> str:
        figures = ", ".join(f"{name} {error:.2e}" for name, error in self.outputs)
        return f"{figures} at batch {' and '.join(map(str, self.batches))}"


@dataclass(frozen=True, slots=True)
class Export:
    """Options of the pass."""

    output_names: tuple[str, ...] = ()
    tolerance: float = 1e-4
    name: str = "export"

    def run(self, model: nn.Module, inputs: Inputs | Tensor, path: str | Path) -> Parity:
        return export_onnx(
            model, inputs, path, output_names=self.output_names, tolerance=self.tolerance
        )


def export_onnx(
    model: nn.Module,
    example_inputs: Inputs | Tensor,
    path: str | Path,
    *,
    output_names: Sequence[str] = (),
    tolerance: float = 1e-4,
) -> Parity:
    """Write ``model`` to ``path`` with a dynamic batch; ``model`` itself is untouched.

    Inputs are named after the network's arguments, outputs ``output_names`` in the order of the
    flattened result. Weights of more than 1.9 GB go to a second file ``<path>.data``.

    Raises:
        ExportError: no exporter takes the network, or ONNX Runtime disagrees with it by more than
            ``tolerance``; whatever was at ``path`` is then unchanged.
    """
    target = Path(path)
    network = copy.deepcopy(model).eval().cpu().float()
    job = _job(network, _prepared(example_inputs), tuple(output_names), tolerance)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".onnx-") as folder:
            parity = _first_success(job, Path(folder) / target.name)
            for file in sorted(Path(folder).iterdir(), key=lambda f: f.name == target.name):
                os.replace(file, target.parent / file.name)  # the weights before the graph
    except OSError as error:
        raise ExportError(f"can't write {target}: {error.strerror or error}") from error
    return parity


@dataclass(frozen=True, slots=True)
class _Job:
    """A private copy of the network, what goes in and what its outputs are called."""

    network: nn.Module
    example: Inputs
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    tolerance: float

    @property
    def batch(self) -> int:
        return next((len(x) for x in self.example if x.dim()), 1)


def _prepared(inputs: Inputs | Tensor) -> Inputs:
    given = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    plain = tuple(x.detach().cpu() for x in given)
    return tuple(x.float() if x.is_floating_point() else x for x in plain)


def _job(network: nn.Module, example: Inputs, names: tuple[str, ...], tolerance: float) -> _Job:
    outputs = _outputs(network, example)
    default = [f"output_{k}" for k in range(len(outputs))] if len(outputs) > 1 else ["output"]
    names = names or tuple(default)
    if len(names) != len(outputs):
        raise ExportError(f"{len(names)} output names for {len(outputs)} outputs: {list(names)}")
    inputs = _input_names(network, len(example))
    if len({*inputs, *names}) != len(inputs) + len(names):
        raise ExportError(f"names of inputs and outputs must differ: {[*inputs, *names]}")
    return _Job(network, example, inputs, names, tolerance)


def _input_names(network: nn.Module, count: int) -> tuple[str, ...]:
    if isinstance(network, fx.GraphModule):
        names = [str(n.target) for n in network.graph.nodes if n.op == "placeholder"]
    else:
        parameters = inspect.signature(network.forward).parameters.values()
        names = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    names += [f"input_{k}" for k in range(len(names), count)]
    return tuple(names[:count])


def _outputs(network: nn.Module, inputs: Inputs) -> list[Tensor]:
    """All output tensors, in order."""
    try:
        with torch.no_grad():
            result = network(*(x.clone() for x in inputs))
    except Exception as error:
        batch = next((len(x) for x in inputs if x.dim()), 1)
        raise ExportError(f"the network fails at batch {batch}: {_line(error)}") from error
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]


class _Flat(nn.Module):
    """A network whose result is a tuple of tensors, whatever it was."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The output tensors of the network, in order."""
        return tuple(t for t in tree_leaves(self.network(*inputs)) if isinstance(t, Tensor))


# -- exporters ---------------------------------------------------------------------------------

Exporter = Callable[[_Job, Inputs, Path], None]


def _by_program(job: _Job, inputs: Inputs, path: Path) -> None:
    """torch.export: reads the graph symbolically, so sizes of the example can't stick."""
    batch = torch.export.Dim("batch")
    dynamic = tuple({0: batch} if x.dim() else {} for x in inputs)
    flat = _is_flat(job.network, inputs)
    torch.onnx.export(
        job.network if flat else _Flat(job.network).eval(),
        inputs,
        str(path),
        input_names=list(job.input_names),
        output_names=list(job.output_names),
        dynamic_shapes=dynamic if flat else (dynamic,),
        opset_version=OPSET,
        dynamo=True,
        external_data=_bytes(job.network) > SINGLE_FILE,
        verbose=False,
    )


def _by_script(job: _Job, inputs: Inputs, path: Path) -> None:
    """TorchScript: records one run."""
    names = [n for n, x in zip(job.input_names, inputs, strict=True) if x.dim()]
    torch.onnx.export(
        _Flat(job.network).eval(),
        inputs,
        str(path),
        input_names=list(job.input_names),
        output_names=list(job.output_names),
        dynamic_axes={name: {0: "batch"} for name in (*names, *job.output_names)},
        opset_version=OPSET,
        dynamo=False,
    )


EXPORTERS: tuple[tuple[str, Exporter], ...] = (
    ("torch.export", _by_program),
    ("TorchScript", _by_script),
)


def _is_flat(network: nn.Module, inputs: Inputs) -> bool:
    with torch.no_grad():
        result = network(*(x.clone() for x in inputs))
    parts = result if isinstance(result, tuple) else (result,)
    return all(isinstance(part, Tensor) for part in parts)


def _bytes(network: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in network.state_dict().values())


def _first_success(job: _Job, path: Path) -> Parity:
    failures = []
    for name, exporter in EXPORTERS:
        try:
            _write(job, exporter, path)
            return _compare(job, path, name)
        except ExportError as error:
            failures.append(f"{name}: {error}")
            for file in path.parent.iterdir():
                file.unlink()
    raise ExportError(f"{path.name} isn't exported; " + "; ".join(failures))


def _write(job: _Job, exporter: Exporter, path: Path) -> None:
    """Export a copy, so that what one exporter leaves behind doesn't reach the next."""
    own = _Job(
        copy.deepcopy(job.network), job.example, job.input_names, job.output_names, job.tolerance
    )
    inputs = _resized(job.example, max(2, job.batch))  # a batch of 1 would be taken for a constant
    try:
        with _quiet(), torch.no_grad():
            exporter(own, inputs, path)
            onnx.checker.check_model(str(path), full_check=True)
    except OSError:
        raise  # the disk, not the network
    except Exception as error:
        raise ExportError(_line(error)) from error


# -- parity ------------------------------------------------------------------------------------


def _compare(job: _Job, path: Path, exporter: str) -> Parity:
    session = _session(path)
    batches = tuple(sorted({job.batch, OTHER_BATCH}))
    worst = dict.fromkeys(job.output_names, 0.0)
    for batch in batches:
        inputs = job.example if batch == job.batch else _resized(job.example, batch)
        expected = _outputs(job.network, inputs)
        found = _run(session, job, inputs, batch)
        for name, a, b in zip(job.output_names, expected, found, strict=True):
            worst[name] = _larger(worst[name], relative_error(a, b))
    total = 0.0
    for error in worst.values():
        total = _larger(total, error)
    parity = Parity(total, tuple(worst.items()), batches, exporter)
    if not parity.max_error <= job.tolerance:
        raise ExportError(f"ONNX Runtime differs by {parity}, tolerance {job.tolerance:.2e}")
    return parity


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what matters is raised
    try:
        return onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(f"ONNX Runtime doesn't load it: {_line(error)}") from error


def _run(
    session: onnxruntime.InferenceSession, job: _Job, inputs: Inputs, batch: int
) -> list[Tensor]:
    known = {value.name for value in session.get_inputs()}
    feed = {n: x.numpy() for n, x in zip(job.input_names, inputs, strict=True) if n in known}
    try:
        found = session.run(list(job.output_names), feed)
    except Exception as error:
        raise ExportError(f"ONNX Runtime fails at batch {batch}: {_line(error)}") from error
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


def _larger(a: float, b: float) -> float:
    """The larger error; NaN is larger than everything."""
    return b if b != b or b > a else a


def _resized(example: Inputs, batch: int) -> Inputs:
    """Inputs like the example's with another batch size, no two rows equal."""
    generator = torch.Generator().manual_seed(0)
    resized = []
    for x in example:
        if not x.dim():
            resized.append(x)
            continue
        rows = x[torch.arange(batch) % max(len(x), 1)]
        if x.is_floating_point():
            spread = float(x.std()) if x.numel() > 1 else 0.0
            noise = torch.randn(rows.shape, generator=generator)
            rows = rows + noise * (0.3 * spread if spread > 0 else 1.0)
        resized.append(rows)
    return tuple(resized)


# -- manners -----------------------------------------------------------------------------------


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' progress messages, warnings and logs."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    sink = io.StringIO()
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(sink),
            contextlib.redirect_stderr(sink),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _line(error: BaseException) -> str:
    """The first line of an error's root cause that says something."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
