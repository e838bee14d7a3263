"""One source or a few: plans in which the others have no channel, taken where they do better."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import pytest
import torch
from torch import Tensor, nn

import pleas_fx as pf
from pleas_fx.budget import Budget
from pleas_fx.calibration import Batches, collect
from pleas_fx.compiler import Compiled, compile_models
from pleas_fx.ir import Plan
from pleas_fx.planning import decide, look
from pleas_fx.prepare import prepare
from pleas_fx.request import Clock, Options
from tests.merging import NAMES, calibration, doubled, merge, outputs, precise, worst
from tests.networks import NETWORKS

EXACT = 1e-9  # relative, float64
NAME = "narrow_resnet"
SEVERAL = """narrow_resnet densenet resnext group_norm_resnet gated mobilenet_v2 shufflenet_v2
    lambda shared cnn1d padded_shortcut nested_blocks detector""".split()


def data(name: str) -> Batches:
    """A few examples in float64."""
    inputs = len(NETWORKS[name].inputs())
    return collect([doubled(b) for b in calibration(name)], inputs=inputs)


def of_some(
    name: str, seeds: Sequence[int], kept: Sequence[int], flops: float
) -> tuple[Plan, nn.Module]:
    """Some of the sources with these seeds, planned and rewritten, not fitted."""
    options, clock = Options(Budget(flops=flops), heads="shared"), Clock()
    inputs = doubled(NETWORKS[name].inputs())
    prepared = prepare(precise(NETWORKS[name], *seeds), inputs, options, clock)
    observed = look(prepared, data(name), options, clock)
    plan, rewritten = decide(prepared, observed, inputs, options, clock, kept=kept)
    return plan, rewritten.module


@pytest.mark.parametrize("name", NAMES)
def test_alone_at_its_own_cost_a_source_is_itself(name: str) -> None:
    """Whatever operators it has; the control is the other source."""
    inputs = doubled(NETWORKS[name].inputs())
    own, other = precise(NETWORKS[name], 1, 0)
    _, module = of_some(name, [0, 1], [1], 1.0)
    assert worst(outputs(module, inputs), outputs(own, inputs)) < EXACT
    assert worst(outputs(module, inputs), outputs(other, inputs)) > 1e-3
    assert pf.count(module, inputs).flops <= pf.count(own, inputs).flops


@pytest.mark.parametrize("name", SEVERAL)
def test_two_of_three_are_merged_as_if_there_were_no_third(name: str) -> None:
    """At their own cost, whatever operators they have; the control is another pair."""
    inputs = doubled(NETWORKS[name].inputs())
    _, module = of_some(name, [0, 1, 2], [0, 2], 2.0)
    own, other = (of_some(name, pair, [0, 1], 2.0)[1] for pair in ([0, 2], [0, 1]))
    assert worst(outputs(module, inputs), outputs(own, inputs)) < EXACT
    assert worst(outputs(module, inputs), outputs(other, inputs)) > 1e-3


@pytest.mark.parametrize("name", [NAME, "densenet", "resnext", "group_norm_resnet", "gated"])
@pytest.mark.parametrize("kept", [(0,), (1,), (0, 2), (1, 2)])
def test_the_others_have_no_channel_at_all(name: str, kept: tuple[int, ...]) -> None:
    """In any group, at a budget that thins what is kept."""
    plan, module = of_some(name, [0, 1, 2], kept, 0.6)
    for group in plan.groups:
        assert group.slots
        for lane in group.lanes:
            assert {s for s in range(3) if lane.membership >> s & 1} <= {*kept}
            assert not (lane.channels[:, [s for s in range(3) if s not in kept]] >= 0).any()
    inputs = doubled(NETWORKS[name].inputs())
    (model,) = precise(NETWORKS[name], kept[0])
    assert pf.count(module, inputs).flops <= 0.6 * pf.count(model, inputs).flops * 1.000001


def faint(scale: float) -> tuple[nn.Module, nn.Module]:
    """Two unrelated sources; the outputs of the second are smaller by ``scale``."""
    first, second = precise(NETWORKS[NAME], 0, 1)
    head = [m for m in second.modules() if isinstance(m, nn.Linear)][-1]
    loud = [m for m in first.modules() if isinstance(m, nn.Linear)][-1]
    with torch.no_grad():
        for layer, factor in ((head, scale), (loud, 10.0)):
            layer.weight.mul_(factor)
            layer.bias.mul_(factor)
    return first, second


@cache
def images() -> Tensor:
    """Enough for both halves."""
    (found,) = doubled(NETWORKS[NAME].batch(64, seed=4))
    return found


def compiled(contest: bool = True, heads: str = "shared", **budget: float) -> Compiled:
    """The first of two sources decides every answer."""
    options = Options(Budget(**budget), heads=heads, contest=contest)
    return compile_models(faint(1e-3), (images()[:2],), collect(images()), options, Clock())


def sources_in(plan: Plan) -> set[int]:
    """Who has channels."""
    return {
        s for g in plan.groups for lane in g.lanes for s in range(2) if lane.membership >> s & 1
    }


def test_a_source_that_decides_every_answer_is_taken_alone() -> None:
    """And the plan says why; without the contest both are thinned, which answers worse."""
    found, both = compiled(flops=1.0), compiled(contest=False, flops=1.0)
    assert sources_in(found.plan) == {0}
    assert found.plan.note.startswith("source A alone:")
    assert sources_in(both.plan) == {0, 1}
    assert not both.plan.note
    wanted = outputs(faint(1e-3)[0], (images(),))[0].argmax(1)
    right = [
        float((outputs(c.rewritten.module, (images(),))[0].argmax(1) == wanted).double().mean())
        for c in (found, both)
    ]
    assert right[0] == 1.0
    assert right[1] < 0.9


def test_two_of_three_are_taken_where_the_third_only_costs() -> None:
    """The third answers nothing; what the others say is what all say, and takes both of them."""
    models = precise(NETWORKS[NAME], 0, 1, 2)
    last = [m for m in models[2].modules() if isinstance(m, nn.Linear)][-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.zero_()
    found = pf.merge(models, images(), flops=1.9, heads="shared", trials=0, progress=False)
    assert {s for g in found.plan.groups for s in range(3) if g.kept[s]} == {0, 1}
    assert found.plan.note.startswith("sources AB alone")


def test_widths_own_heads_and_full_budgets_leave_all_sources_in() -> None:
    """A width asks for slots; heads of their own need their source; at 2.0 nothing is thinned."""
    assert sources_in(compiled(width=0.5).plan) == {0, 1}
    assert sources_in(compiled(heads="separate", flops=0.5).plan) == {0, 1}
    assert sources_in(compiled(flops=2.0).plan) == {0, 1}


def test_where_every_source_knows_its_own_images_best_none_is_dropped() -> None:
    """Each is sure and right on half of the images, nearly unthinned."""
    first, second = precise(NETWORKS[NAME], 0, 1)
    halves = pf.PerSource([images()[:32], images()[32:] + 3.0])
    result = pf.merge([first, second], halves, flops=1.9, heads="shared", progress=False)
    assert sources_in(result.plan) == {0, 1}


def test_a_tie_keeps_all_sources_merged() -> None:
    """A permuted copy: alone it is as good as merged, and no better."""
    (model,), inputs = precise(NETWORKS[NAME], 0), doubled(NETWORKS[NAME].inputs())
    symmetry = pf.permutation_groups(model, inputs)
    planted = symmetry.apply(model, symmetry.random(3))
    result = pf.merge([model, planted], images(), flops=1.0, heads="shared", progress=False)
    assert all(len(g.lanes) == 1 and math.isclose(g.width, 1.0) for g in result.plan.groups)
    assert worst(outputs(result.model, inputs), outputs(model, inputs)) < EXACT


def test_the_same_seed_gives_the_same_choice_and_the_plan_tells_it_beforehand() -> None:
    """To the bit."""
    first, second = compiled(flops=0.5), compiled(flops=0.5)
    for key, value in first.rewritten.module.state_dict().items():
        assert torch.equal(value, second.rewritten.module.state_dict()[key])
    told = pf.plan(faint(1e-3), images(), flops=0.5, heads="shared", progress=False)
    assert str(told) == str(first.plan)
    assert told.note == first.plan.note


def test_one_image_tells_nothing() -> None:
    """There is no half to judge on."""
    options = Options(Budget(flops=0.5), heads="shared")
    one = collect(images()[:1])
    found = compile_models(faint(1e-3), (images()[:2],), one, options, Clock())
    assert sources_in(found.plan) == {0, 1}
    assert not found.plan.note


def test_outputs_without_labels_keep_all_sources() -> None:
    """Nothing tells whether they stand for the same: no source may be left out."""
    models = [NETWORKS["energy"].make(seed) for seed in (0, 1)]
    result = merge("energy", models, flops=1.0)
    assert len(outputs(result.model, NETWORKS["energy"].inputs())) == len(models)


def without_images(flops: float) -> tuple[Plan, list[nn.Module]]:
    """Two sources with shared outputs, and only inputs that are made from what their norms keep."""
    models = [NETWORKS[NAME].make(seed).eval() for seed in (0, 1)]
    found = pf.merge(
        models,
        flops=flops,
        heads="shared",
        synthetic=16,
        example_inputs=NETWORKS[NAME].inputs(),
        progress=False,
    )
    return found.plan, [found.model, *models]


def test_without_images_of_their_kind_one_source_is_taken_as_it_is() -> None:
    """Its outputs aren't taught either; above a source's cost candidates compete as ever."""
    plan, (merged, *models) = without_images(flops=1.0)
    (taken,) = sources_in(plan)
    assert "for want of images of the sources' kind" in plan.note
    assert "taught" not in plan.note
    inputs = NETWORKS[NAME].inputs()
    assert worst(outputs(merged, inputs), outputs(models[taken], inputs)) < 1e-5
    assert worst(outputs(merged, inputs), outputs(models[1 - taken], inputs)) > 1e-3
    more, _ = without_images(flops=1.5)
    assert "for want of" not in more.note
