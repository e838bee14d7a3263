"""Write a network as ONNX and prove that the file computes the same.

torch.export's exporter comes first, the older TorchScript exporter where that one fails, then the
first one without its optimiser, which may leave out what it still reads, with kernels of single
examples as products, and with the operators of a newer ONNX. A file reaches its place only after
onnx.checker and a comparison with ONNX Runtime.
"""

from __future__ import annotations

import copy
import inspect
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from pathlib import Path

import onnx
import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from passes._parity import (
    Inputs,
    Parity,
    batch_of,
    compare,
    first_line,
    larger,
    outputs,
    own_rounding,
    resized,
)
from passes._products import as_products
from passes._quiet import no_descriptor, quiet
from pleas_fx.errors import ExportError
from pleas_fx.explicit import explicit_operators
from pleas_fx.module_tree import twin

OPSET = 18
NEWER = 20  # has deformable convolutions
ROUNDINGS = 4.0  # of the network itself: no runtime can be closer to it than it is to itself
SINGLE_FILE = 1_000_000_000  # bytes; larger weights go to a .data file: protobuf ends at 2 GiB

__all__ = ["Export", "Parity", "export_onnx"]


@dataclass(frozen=True, slots=True)
class Export:
    """Options of the pass."""

    output_names: tuple[str, ...] = ()
    tolerance: float = 1e-4
    name: str = "export"

    def run(self, model: nn.Module, inputs: Inputs | Tensor, path: str | Path) -> Parity:
        """Write the file; see :func:`export_onnx`."""
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
    flattened result. Weights of more than 1 GB go to a second file ``<path>.data``.

    Raises:
        ExportError: no exporter takes the network, or ONNX Runtime disagrees with it by more than
            ``tolerance`` and by more than a few times what the network's own float32 lies from its
            float64; whatever was at ``path`` is then unchanged.
    """
    target = Path(path)
    job = _job(_copy(model), _prepared(example_inputs), tuple(output_names), tolerance)
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


def _copy(model: nn.Module) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise ExportError(f"expected a torch.nn.Module, got {type(model).__name__}")
    plain = all(p.device.type == "cpu" and p.dtype == torch.float32 for p in model.parameters())
    try:
        own = twin(model) if plain else copy.deepcopy(model)  # parameters are only read
        return own.eval().cpu().float()
    except (RuntimeError, TypeError) as error:
        raise ExportError(f"the network can't be copied: {first_line(error)}") from error


def _prepared(inputs: Inputs | Tensor) -> Inputs:
    given = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    if not given or not all(isinstance(x, Tensor) for x in given):
        raise ExportError("example inputs must be a tensor or a tuple of tensors")
    plain = tuple(x.detach().cpu() for x in given)
    return tuple(x.float() if x.is_floating_point() else x for x in plain)


def _job(network: nn.Module, example: Inputs, names: tuple[str, ...], tolerance: float) -> _Job:
    found = outputs(network, example)
    default = [f"output_{k}" for k in range(len(found))] if len(found) > 1 else ["output"]
    names = names or tuple(default)
    if len(names) != len(found):
        raise ExportError(f"{len(names)} output names for {len(found)} outputs: {list(names)}")
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


def _by_program(
    job: _Job, inputs: Inputs, path: Path, *, optimize: bool = True, opset: int = OPSET
) -> None:
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
        opset_version=opset,
        dynamo=True,
        external_data=_bytes(job.network) > SINGLE_FILE,
        optimize=optimize,
        verbose=False,
    )


def _by_script(job: _Job, inputs: Inputs, path: Path) -> None:
    """TorchScript: records one run."""
    names = [n for n, x in zip(job.input_names, inputs, strict=True) if x.dim()]
    with no_descriptor(1), explicit_operators():  # C++ prints the whole graph there when it fails
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


class _Inapplicable(Exception):
    """There is nothing in the network that an exporter writes in another way."""


def _by_products(job: _Job, inputs: Inputs, path: Path) -> None:
    """torch.export, and no convolutions whose number of groups depends on the batch's size."""
    if not isinstance(job.network, fx.GraphModule) or not as_products(job.network):
        raise _Inapplicable
    _by_program(job, inputs, path)


EXPORTERS: tuple[tuple[str, Exporter], ...] = (
    ("torch.export", _by_program),
    ("TorchScript", _by_script),
    ("torch.export, not optimised", partial(_by_program, optimize=False)),
    ("torch.export, with products", _by_products),
    ("torch.export, newer operators", partial(_by_program, opset=NEWER)),
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
            return _compared(job, path, name)
        except _Inapplicable:
            continue
        except ExportError as error:
            failures.append(f"{name}: {error}")
            for file in path.parent.iterdir():
                file.unlink()
    raise ExportError(f"{path.name} isn't exported; " + "; ".join(failures))


def _write(job: _Job, exporter: Exporter, path: Path) -> None:
    """Export a copy, so that what one exporter leaves behind doesn't reach the next."""
    own = replace(job, network=copy.deepcopy(job.network))
    size = max(2, batch_of(job.example))  # torch.export takes a size of 1 for a constant
    try:
        with quiet(), torch.no_grad():
            exporter(own, resized(job.example, size), path)
            _forget_origin(path)
            onnx.checker.check_model(str(path), full_check=True)
    except (OSError, _Inapplicable):
        raise  # the disk, not the network; or nothing was written
    except Exception as error:
        raise ExportError(first_line(error)) from error


def _forget_origin(path: Path) -> None:
    """Drop what exporters note beside the network: stack traces with this machine's paths."""
    model = onnx.load(str(path), load_external_data=False)
    bodies = [model.graph, *model.functions]
    while bodies:
        body = bodies.pop()
        values = (*body.value_info, *getattr(body, "input", ()), *getattr(body, "output", ()))
        named = [v for v in values if not isinstance(v, str)]  # functions only have names
        for part in (body, *body.node, *named, *getattr(body, "initializer", ())):
            part.ClearField("metadata_props")
            part.ClearField("doc_string")
        bodies += [a.g for node in body.node for a in node.attribute if a.HasField("g")]
    onnx.save(model, str(path))


def _compared(job: _Job, path: Path, exporter: str) -> Parity:
    errors = compare(job.network, job.example, path, job.input_names, job.output_names)
    worst = {
        name: reduce(larger, (figures[name] for figures in errors.values()))
        for name in job.output_names
    }
    total = reduce(larger, worst.values(), 0.0)
    parity = Parity(total, tuple(worst.items()), tuple(errors), exporter)
    if parity.max_error <= job.tolerance:
        return parity
    message = f"ONNX Runtime differs by {parity}, tolerance {job.tolerance:.2e}"
    if not math.isfinite(parity.max_error):
        raise ExportError(message)
    rounding = own_rounding(job.network, job.example, parity.batches)
    if not parity.max_error <= ROUNDINGS * rounding:
        raise ExportError(f"{message}, the network's own rounding {rounding:.2e}")
    return replace(parity, rounding=rounding)
