"""The literal table of methods: what each does, at which budgets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

import pleas_fx as pf
from benchmarks.accuracy.rivals.aligned import Request
from benchmarks.accuracy.rivals.permutation import permutation
from benchmarks.accuracy.rivals.published_adam import published_adam
from benchmarks.accuracy.rivals.refit import merged_refit
from benchmarks.accuracy.rivals.regmean import regmean
from benchmarks.accuracy.rivals.zipit import zipit
from pleas_fx.budget import Budget
from pleas_fx.calibration import collect
from pleas_fx.compiler import compile_models
from pleas_fx.request import Clock, Options

Size = float  # executed FLOPs relative to one source
STEPS = 300  # of distillation: training, but without labels
FIXED = (1.0,)
FEW: tuple[Size, ...] = (0.5, 1.0, 1.2)
CURVE: tuple[Size, ...] = (0.25, 0.5, 0.75, 1.0, 1.2, 1.5, 2.0)


@dataclass(frozen=True, slots=True)
class Method:
    """A way to merge.

    ``brief``: depends on owners or on the number of images. ``slow``: only in some scenarios.
    ``same``: only where all sources do the same. ``version``: goes up when its results change.
    ``trained``: not free of training, so it is no rival; of the first architecture only.
    """

    name: str
    title: str
    merge: Callable[[Request, Size], nn.Module]
    budgets: tuple[Size, ...] = FIXED
    brief: bool = False
    needs_data: bool = True
    slow: bool = False
    same: bool = False
    version: int = 1
    trained: bool = False


def _library(
    method: str, fixed: bool, request: Request, budget: Size, distil: int = 0
) -> nn.Module:
    """One of the library's own; those that merge everything take a width, not a budget."""
    result = pf.merge(
        list(request.models),
        request.calibration,
        width=1.0 if fixed else None,
        flops=None if fixed else budget,
        heads=request.heads,
        classes=request.classes,
        method=method,
        distil=distil,
        seed=request.seed,
        progress=False,
        example_inputs=request.example,
    )
    return result.model


def _at_one(rival: Callable[[Request], nn.Module]) -> Callable[[Request, Size], nn.Module]:
    return lambda request, _: rival(request)


def _one_source(request: Request, budget: Size) -> nn.Module:
    """Source 0 merged with itself: thinned and refitted, the others thrown away."""
    options = Options(Budget(flops=min(budget, 1.0)), "shared", seed=request.seed, contest=False)
    twice, data = (request.models[0],) * 2, collect(request.calibration)
    return compile_models(twice, (request.example,), data, options, Clock()).rewritten.module


def _published(request: Request, budget: Size) -> nn.Module:
    return _library("pleas-paper", budget == 1.0, request, budget)


_ALL = (
    Method("average", "plain average", partial(_library, "average", True), needs_data=False),
    Method("permute", "permutation (activations)", _at_one(partial(permutation, on="activations"))),
    Method("permute-weights", "permutation (weights)", _at_one(partial(permutation, on="weights"))),
    Method("regmean", "RegMean", _at_one(regmean), brief=True),
    Method("zipit", "ZipIt", _at_one(zipit)),
    Method("published-adam", "PLeaS as published, Adam", _at_one(published_adam), slow=True),
    Method("published", "PLeaS as published, solved", _published, (1.0, 1.2), brief=True),
    Method("merged-refit", "all merged, our fit", _at_one(merged_refit), brief=True, version=3),
    Method(
        "side-by-side",
        "side by side",
        partial(_library, "side-by-side", False),
        FEW,
        True,
        version=4,
    ),
    Method("one-source", "one source, thinned", _one_source, FEW, True, same=True, version=3),
    Method("pleas", "pleas-fx", partial(_library, "pleas", False), FEW, True, False, version=7),
    Method(
        "distilled",
        "pleas-fx, distilled",
        partial(_library, "pleas", False, distil=STEPS),
        (0.5, 1.0),
        trained=True,
    ),
)
METHODS = {method.name: method for method in _ALL}
REFERENCES = {
    "own": "each source on its own",
    "best-source": "best single source",
    "ensemble": "ensemble, mean logits",
    "ensemble-probabilities": "ensemble, mean probabilities",
    "ensemble-confident": "ensemble, more confident",
    "all-labels": "one network, all labels",
}
