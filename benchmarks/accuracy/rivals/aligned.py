"""A network with every channel merged by number: what permutation and other rivals start from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from passes.match import match_activations, match_weights
from passes.observe import Statistics, observe
from passes.rewrite import Rewritten
from pleas_fx.budget import Budget
from pleas_fx.calibration import Batches, collect
from pleas_fx.heads import Classes
from pleas_fx.ir import Matching, Permutation, Program, Symmetry
from pleas_fx.planning import decide, look
from pleas_fx.prepare import Prepared, prepare
from pleas_fx.request import Clock, Options

EXAMPLES = 2


@dataclass(frozen=True, slots=True)
class Aligned:
    """The sources, the merged network (plain average as weights), and the data."""

    models: tuple[nn.Module, ...]
    programs: tuple[Program, ...]
    symmetries: tuple[Symmetry, ...]
    rewritten: Rewritten
    data: Batches


@dataclass(frozen=True, slots=True)
class Request:
    """What every rival is asked: the arguments of a merge."""

    models: Sequence[nn.Module]
    calibration: object  # as pf.merge takes it
    heads: str
    classes: Classes | None
    seed: int
    example: Tensor

    @property
    def batches(self) -> Batches:
        """The calibration data, cut into batches."""
        return collect(self.calibration)


def align(request: Request, on: str) -> Aligned:
    """Sources with their channels in matched order, merged by number.

    ``on``: "activations" (correlation), "weights" (Git Re-Basin), "" (as they are).
    """
    models = list(request.models)
    data = request.batches
    inputs = tuple(t[:EXAMPLES] for t in data.batches[0])
    options = Options(Budget(width=1.0), request.heads, request.classes, "average", request.seed)
    prepared = prepare(models, inputs, options, Clock())
    if on:
        matching = _matching(prepared, data, on, request.seed)
        models = [
            ordered(model, symmetry, matching, source)
            for source, (model, symmetry) in enumerate(
                zip(models, prepared.symmetries, strict=True)
            )
        ]
        prepared = prepare(models, inputs, options, Clock())
    observed = look(prepared, data, options, Clock())
    _, rewritten = decide(prepared, observed, inputs, options, Clock())
    return Aligned(tuple(models), prepared.programs, prepared.symmetries, rewritten, data)


def _matching(prepared: Prepared, data: Batches, on: str, seed: int) -> Matching:
    if on == "weights":
        return match_weights(prepared.programs, prepared.symmetries[0])
    found = statistics(prepared.programs, prepared.symmetries, data, seed)
    return match_activations(prepared.programs, prepared.symmetries[0], found)


def statistics(
    programs: Sequence[Program], symmetries: Sequence[Symmetry], data: Batches, seed: int
) -> Statistics:
    """Joint moments of all sources' channels."""
    return observe(programs, symmetries, data.batches, seed=seed)


def ordered(model: nn.Module, symmetry: Symmetry, matching: Matching, source: int) -> nn.Module:
    """A source whose channels stand where those of source 0 do that they match."""
    movable = {g.id for g in symmetry.groups}
    order = {g: p[source] for g, p in matching.partner.items() if g in movable}
    return symmetry.apply(model, Permutation(order))


def set_tensor(module: nn.Module, name: str, value: Tensor) -> None:
    """Overwrite a parameter or buffer."""
    own, _, leaf = name.rpartition(".")
    tensor = getattr(module.get_submodule(own), leaf)
    with torch.no_grad():
        tensor.copy_(value.to(tensor))
