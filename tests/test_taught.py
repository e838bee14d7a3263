"""One source alone whose outputs are fitted to what all sources say."""

from __future__ import annotations

import copy
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

import pleas_fx as pf
from passes._rows import Settings
from passes.fit import fit
from passes.rewrite import Rewritten, Site
from pleas_fx.budget import Budget
from pleas_fx.calibration import collect
from pleas_fx.heads import head_nodes, output_groups
from pleas_fx.planning import decide, look
from pleas_fx.prepare import Prepared, prepare
from pleas_fx.request import Clock, Options
from pleas_fx.taught import taught_by_all
from tests.merging import clone, doubled, outputs, precise, worst
from tests.networks import NETWORKS

EXACT = 1e-9  # relative, float64
RIDGE = 1e-14
LINEAR = ["narrow_resnet", "densenet", "mobilenet_v2", "group_norm_resnet", "vgg", "gated"]
ENOUGH = 512  # examples: more than any of these last layers has unknowns


def otherwise(model: nn.Module) -> nn.Module:
    """The same network with another last layer."""
    found = copy.deepcopy(model)
    last = [m for m in found.modules() if isinstance(m, nn.Linear)][-1]
    drawn = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=drawn, dtype=parameter.dtype))
    return found


def first_alone(name: str, models: list[nn.Module]) -> tuple[Prepared, Rewritten, tuple[Site, ...]]:
    """The first source, whole, and its outputs to be taught."""
    options, inputs = Options(Budget(flops=1.0), heads="shared"), doubled(NETWORKS[name].inputs())
    prepared = prepare(models, inputs, options, Clock())
    data = collect([doubled(NETWORKS[name].batch(12, seed=5))], inputs=len(inputs))
    observed = look(prepared, data, options, Clock())
    _, rewritten = decide(prepared, observed, inputs, options, Clock(), kept=[0])
    outs = output_groups(prepared.programs[0], prepared.symmetries[0])
    return prepared, rewritten, taught_by_all(rewritten, outs)


def teach(
    name: str, models: list[nn.Module], owners: tuple[int | None, ...] = (None, None)
) -> tuple[nn.Module, dict[str, torch.Tensor], tuple[Site, ...]]:
    """The network after its outputs were fitted, its state before, and what was fitted."""
    prepared, rewritten, taught = first_alone(name, models)
    before = clone(rewritten.module)
    program, symmetry = prepared.programs[0], prepared.symmetries[0]
    heads = head_nodes(program, symmetry, output_groups(program, symmetry))
    settings = Settings(RIDGE, 8, 0, owners, heads)
    batches = [doubled(NETWORKS[name].batch(ENOUGH // 2, seed=k)) for k in (6, 7)]
    fit(prepared.programs, replace(rewritten, sites=taught), batches, settings)
    return rewritten.module, before, taught


@pytest.mark.parametrize("name", LINEAR)
def test_what_all_say_is_learnt_where_the_source_knows_enough(name: str) -> None:
    """Sources that differ in their last layer only; the control is the source as it was."""
    (model,), inputs = precise(NETWORKS[name], 0), doubled(NETWORKS[name].inputs())
    models = [model, otherwise(model)]
    module, _, _ = teach(name, models)
    each = [outputs(m, inputs) for m in models]
    mean = [torch.stack(same).mean(0) for same in zip(*each, strict=True)]
    assert worst(outputs(module, inputs), mean) < EXACT
    assert worst(outputs(model, inputs), mean) > 1e-2


@pytest.mark.parametrize("name", LINEAR)
def test_only_the_outputs_are_fitted(name: str) -> None:
    """Everything else is the source's to the bit."""
    models = precise(NETWORKS[name], 0, 1)
    module, before, taught = teach(name, models)
    fitted = {f"{site.module}.{leaf}" for site in taught for leaf in ("weight", "bias")}
    changed = {k for k, v in module.state_dict().items() if not torch.equal(v, before[k])}
    assert changed
    assert changed <= fitted


def test_images_of_all_sources_teach() -> None:
    """Also where owners are known: by least squares that is halfway to the owner's answers."""
    name = LINEAR[0]
    (model,), inputs = precise(NETWORKS[name], 0), doubled(NETWORKS[name].inputs())
    models = [model, otherwise(model)]
    module, _, _ = teach(name, models, owners=(1, 1))
    first, second = (outputs(m, inputs)[0] for m in models)
    assert worst(outputs(module, inputs), [0.25 * first + 0.75 * second]) < EXACT


@pytest.mark.parametrize(
    ("flops", "taken"), [(0.6, "source [AB] alone, outputs taught by all:"), (1.0, "all sources:")]
)
def test_a_merge_takes_it_where_it_answers_best(flops: float, taken: str) -> None:
    """Sources with one body, thinned; whole, merging is free and the tie is that of all sources."""
    (model,) = precise(NETWORKS["narrow_resnet"], 0)
    (images,) = doubled(NETWORKS["narrow_resnet"].batch(256, seed=4))
    found = pf.merge([model, otherwise(model)], images, flops=flops, heads="shared", progress=False)
    assert "taught by all" in found.plan.note
    assert re.match(taken, found.plan.note)
