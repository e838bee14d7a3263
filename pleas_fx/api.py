"""The public functions: merge, plan, permutation_groups, count, load, export_onnx."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from passes._wrappers import innermost
from passes.groups import Groups
from passes.trace import trace
from pleas_fx import costs
from pleas_fx.budget import Budget
from pleas_fx.calibration import Batches, collect
from pleas_fx.compiler import compile_models, plan_only
from pleas_fx.errors import OptionError, SourceError
from pleas_fx.heads import Classes
from pleas_fx.ir import Count, GroupId, Plan, Program, Symmetry
from pleas_fx.modes import ordinary, plain_modes
from pleas_fx.module_tree import copied
from pleas_fx.planning import METHODS
from pleas_fx.request import Clock, Options
from pleas_fx.result import MergeResult, RecipeValue

if TYPE_CHECKING:
    from passes.export import Parity

HEADS = ("separate", "shared", "joint")
EXAMPLES = 2  # inputs that shapes, groups and the certificate are worked out on

Inputs = Tensor | tuple[Tensor, ...]


@plain_modes()
def permutation_groups(model: nn.Module, example_inputs: Inputs) -> Symmetry:
    """The permutation groups of ``model``, with a certificate (float64, relative error).

    Raises:
        TraceError: the model can't be traced or fails on the example inputs.
    """
    return analyse(model, example_inputs)[1]


@plain_modes()
def analyse(model: nn.Module, example_inputs: Inputs) -> tuple[Program, Symmetry]:
    """The permutation groups of ``model``, and the graph whose nodes they name."""
    inputs = as_tuple(example_inputs)
    program = trace(_placed(model, inputs[0].device), inputs)
    return program, Groups().run(program)


@plain_modes()
def count(model: nn.Module, example_inputs: Inputs) -> Count:
    """Parameters, and multiply-adds x 2 that one example executes (as counted by torch)."""
    return costs.count(innermost(model), as_tuple(example_inputs))


@plain_modes()
def merge(
    models: Sequence[nn.Module],
    calibration: object = None,
    *,
    width: float | None = None,
    flops: float | None = None,
    params: float | None = None,
    latency: float | None = None,
    widths: Mapping[GroupId, float] | None = None,
    heads: str = "separate",
    classes: Classes | None = None,
    method: str = "pleas",
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool | Callable[[str], None] = True,
    example_inputs: Inputs | None = None,
    synthetic: int | None = None,
    trials: int | None = None,
    distil: int = 0,
    recipe: Mapping[str, RecipeValue] | None = None,
) -> MergeResult:
    """Merge two or more networks with the same graph into one (DESIGN; Nasery et al. 2025).

    Args:
        calibration: (N, …) tensor, (images, labels), batches, ``PerSource`` of these, or None
            (data-free; needs ``example_inputs``). Labels are ignored. For joint heads without
            common classes, images whose source isn't named get the likeliest; the report says how
            many. Shared outputs are fitted halfway between the mean of the sources and the image's
            own.
        synthetic: inputs to make for every source, from the statistics that its norms keep. None:
            as many as are needed (all of them without data; some where images are few or unlike
            the training data, and making them is quick); 0: none. The report says what was made.
        trials: plans to fit whole and choose from, with other weights of groups' errors, for a
            budget of flops, params or latency: a plan and a fit each. None: only every source
            counts more in turn, where that is quick; 0: one plan.
        distil: steps of training all layers together, once they are fitted, towards what the
            sources answer to the calibration images: without labels, but training, and a step costs
            what three forward passes of 128 images do. Nothing changes unless images held out, one
            in eight, say that something was won, nor with fewer than 64 images a source; the report
            says which. 300 are usually enough (docs/decisions/2026-12-01-distil.md); 0: none.
        width, flops, params, latency, widths: exactly one; relative to one source. None: width 1.
            With shared heads and flops, params or latency, the layers of one source or a few may be
            judged better than those of all, their outputs taught by all; without inputs of their
            kind one source is taken up to its own cost; of small networks several plans are
            fitted, and the best is taken: ``plan.note`` says so.
        heads: "separate" (a tuple, one output a source), "shared" or "joint".
        classes: for joint heads, every source's class names; equal names share an output.
        method: "pleas", or a baseline: "average", "permute", "pleas-paper", "side-by-side".

    Raises:
        PleasError: a subclass for every kind of bad input; the sources are never changed.
    """
    options = _options(
        width, flops, params, latency, widths, heads, classes, method, seed, synthetic, trials
    )
    if distil < 0:
        raise OptionError(f"distil must be at least 0, not {distil}")
    options = replace(options, distil=distil)
    where = torch.device(device) if device is not None else torch.device("cpu")
    data, inputs = _data(models, calibration, example_inputs, where)
    sources = _sources(models, where)
    clock = Clock(_reporter(progress))
    compiled = compile_models(sources, inputs, data, options, clock)
    clock.report("")
    return MergeResult(
        model=compiled.rewritten.module,
        plan=compiled.plan,
        report=compiled.report,
        symmetry=compiled.symmetry,
        inputs=inputs,
        output_names=compiled.rewritten.output_names,
        recipe={**_recipe(options), **(recipe or {})},
    )


@plain_modes()
def plan(
    models: Sequence[nn.Module],
    calibration: object = None,
    *,
    width: float | None = None,
    flops: float | None = None,
    params: float | None = None,
    latency: float | None = None,
    widths: Mapping[GroupId, float] | None = None,
    heads: str = "separate",
    classes: Classes | None = None,
    method: str = "pleas",
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool | Callable[[str], None] = True,
    example_inputs: Inputs | None = None,
    synthetic: int | None = None,
    trials: int | None = None,
) -> Plan:
    """What :func:`merge` would do with the same arguments, without fitting the result.

    Candidates that have to be judged are fitted: shared heads under a budget on half the data, the
    plans of small networks on some of it.
    """
    options = _options(
        width, flops, params, latency, widths, heads, classes, method, seed, synthetic, trials
    )
    where = torch.device(device) if device is not None else torch.device("cpu")
    data, inputs = _data(models, calibration, example_inputs, where)
    clock = Clock(_reporter(progress))
    return plan_only(_sources(models, where), inputs, data, options, clock)


@plain_modes()
def load(folder: str | Path) -> fx.GraphModule:
    """The network of an artefact folder, without the sources' classes."""
    from pleas_fx.artefact import load as load_artefact

    return load_artefact(Path(folder))


@plain_modes()
def export_onnx(
    model: nn.Module, example_inputs: Inputs, path: str | Path, **options: Any
) -> Parity:
    """Write ONNX with a dynamic batch, checked, in parity with ONNX Runtime or an ExportError."""
    from passes.export import export_onnx as export

    return export(model, as_tuple(example_inputs), Path(path), **options)


def as_tuple(inputs: Inputs) -> tuple[Tensor, ...]:
    """Example inputs as a tuple of tensors."""
    given = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    if not given or not all(isinstance(t, Tensor) for t in given):
        raise OptionError("example inputs must be a tensor or a tuple of tensors")
    return tuple(map(ordinary, given))


def _options(
    width: float | None,
    flops: float | None,
    params: float | None,
    latency: float | None,
    widths: Mapping[GroupId, float] | None,
    heads: str,
    classes: Classes | None,
    method: str,
    seed: int,
    synthetic: int | None,
    trials: int | None,
) -> Options:
    given = [b for b in (width, flops, params, latency, widths) if b is not None]
    if len(given) > 1:
        raise OptionError("give exactly one of width, flops, params, latency, widths")
    if heads not in HEADS:
        raise OptionError(f"heads must be one of {', '.join(HEADS)}, not {heads!r}")
    if method not in METHODS:
        raise OptionError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    if classes is not None and heads != "joint":
        raise OptionError('classes only make sense with heads="joint"')
    budget = Budget(width if given else 1.0, flops, params, latency, widths)
    if synthetic is not None and synthetic < 0:
        raise OptionError(f"synthetic must be at least 0, not {synthetic}")
    if trials is not None and trials < 0:
        raise OptionError(f"trials must be at least 0, not {trials}")
    return Options(budget, heads, classes, method, seed, synthetic=synthetic, trials=trials)


def _data(
    models: Sequence[nn.Module],
    calibration: object,
    example_inputs: Inputs | None,
    device: torch.device,
) -> tuple[Batches | None, tuple[Tensor, ...]]:
    given = None if example_inputs is None else as_tuple(example_inputs)
    if calibration is None:
        if given is None:
            raise OptionError("without calibration data, example_inputs are needed")
        return None, tuple(t.to(device) for t in given)
    count = len(given) if given is not None else _input_count(models)
    expected = [tuple(t.shape[1:]) for t in given] if given is not None else None
    data = collect(calibration, inputs=count, expected=expected)
    batches = tuple(tuple(t.to(device) for t in batch) for batch in data.batches)
    examples = given or tuple(t[:EXAMPLES] for t in batches[0])
    return Batches(batches, data.owners), tuple(t.to(device) for t in examples)


def _input_count(models: Sequence[nn.Module]) -> int:
    """How many tensors a model takes, from its forward signature."""
    import inspect

    if not models:
        raise OptionError("a merge needs at least two models, 0 given")
    try:
        parameters = inspect.signature(innermost(models[0]).forward).parameters.values()
    except ValueError:  # TorchScript: it is refused where it is traced
        return 1
    needed = [
        p
        for p in parameters
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    return max(len(needed), 1)


def _sources(models: Sequence[nn.Module], device: torch.device) -> list[nn.Module]:
    """Models with values, on the device."""
    placed = [_placed(model, device) for model in models]
    for number, model in enumerate(placed):
        for name, parameter in model.named_parameters():
            if is_lazy(parameter):
                raise SourceError(f"source {number}: {name} has no values: run its lazy layer once")
    return placed


def _placed(model: nn.Module, device: torch.device) -> nn.Module:
    """The model on the device; a copy where it would have to move, or was made for inference."""
    if not isinstance(model, nn.Module):
        raise OptionError(f"expected a torch.nn.Module, got {type(model).__name__}")
    named = [*model.named_parameters(), *model.named_buffers()]
    tensors = {name: tensor.detach() for name, tensor in named if not is_lazy(tensor)}
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise SourceError(f"{name} of {type(model).__name__} has no values: its device is meta")
        if type(tensor) is not Tensor:  # quantised by torchao, or a part of a distributed one
            raise SourceError(
                f"{name} of {type(model).__name__} is a {type(tensor).__name__}, not a plain tensor"
            )
    if all(t.device.type == device.type and not t.is_inference() for t in tensors.values()):
        return model
    return copied(model).to(device)


def _reporter(progress: bool | Callable[[str], None]) -> Callable[[str], None]:
    if callable(progress):
        return progress
    if not progress or not sys.stderr.isatty():
        return lambda _: None
    return lambda name: print(f"\r\033[K{name}", end="", file=sys.stderr, flush=True)


def _recipe(options: Options) -> dict[str, RecipeValue]:
    budget = options.budget
    found: dict[str, RecipeValue] = {
        "heads": options.heads,
        "method": options.method,
        "seed": options.seed,
    }
    for name in ("width", "flops", "params", "latency"):
        value = getattr(budget, name)
        if value is not None:
            found[name] = float(value)
    if options.synthetic is not None:
        found["synthetic"] = options.synthetic
    if options.trials is not None:
        found["trials"] = options.trials
    if options.distil:
        found["distil"] = options.distil
    if budget.widths is not None:
        found["widths"] = {str(g): float(w) for g, w in budget.widths.items()}
    if options.classes is not None:
        found["classes"] = [[str(name) for name in own] for own in options.classes]
    return found
