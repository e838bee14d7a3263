"""Training all layers together, towards what the sources answer, from what was fitted."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import pleas_fx as pf
from fixtures.load import calibration, sources, test_set
from passes import distil as distilling
from passes.distil import distil
from passes.recalibrate import restate
from passes.rewrite import Rewritten
from pleas_fx import distilling as driver
from pleas_fx.budget import Budget
from pleas_fx.calibration import Batches, collect
from pleas_fx.distilling import held_out
from pleas_fx.fitting import settings_of
from pleas_fx.planning import decide, look
from pleas_fx.prepare import Prepared, prepare
from pleas_fx.request import Clock, Options
from tests.merging import clone, doubled, merge, of_images, outputs, precise, worst
from tests.networks import NETWORKS
from tests.test_taught import first_alone, otherwise

KINDS = ["narrow_resnet", "densenet", "mobilenet_v2", "group_norm_resnet", "vgg"]
ODD = [
    "detector", "unet", "two_inputs", "columns", "shared", "queries", "encoder", "keypoints",
    "cnn1d", "mixer", "prelu", "last_state",
]  # fmt: skip
HEADS = ["joint", "separate", "shared"]
STEPS = 40
WON = 0.9  # of what noise costs, at most, is left
EXACT = 1e-12
SAME = 1e-9  # relative
STILL = 1e-7


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """As few images as there are do: for the mechanics."""
    monkeypatch.setattr(driver, "FEWEST", 2)


def planted(name: str) -> tuple[Prepared, Rewritten, Batches, Options]:
    """A network merged with itself: what is fitted is the network, exactly."""
    (model,) = precise(NETWORKS[name], 0)
    inputs = doubled(NETWORKS[name].inputs())
    options = Options(Budget(width=1.0), heads="shared", distil=STEPS)
    prepared = prepare([model, copy.deepcopy(model)], inputs, options, Clock())
    return (prepared, *planned(name, prepared, options), options)


def planned(name: str, prepared: Prepared, options: Options) -> tuple[Rewritten, Batches]:
    """What isn't fitted yet, and a few batches."""
    inputs = doubled(NETWORKS[name].inputs())
    batches = [doubled(NETWORKS[name].batch(16, seed=5 + k)) for k in range(5)]
    data = collect(batches, inputs=len(inputs))
    observed = look(prepared, data, options, Clock())
    return decide(prepared, observed, inputs, options, Clock())[1], data


def halved(
    name: str, models: Sequence[nn.Module], heads: str
) -> tuple[Prepared, Rewritten, Batches, Options]:
    """Two networks in less than one's FLOPs, not fitted."""
    options = Options(Budget(flops=0.9), heads=heads)
    prepared = prepare(models, doubled(NETWORKS[name].inputs()), options, Clock())
    return (prepared, *planned(name, prepared, options), options)


def confident(model: nn.Module) -> None:
    """Logits as those of a trained network: some class stands out, and their mean is zero."""
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    with torch.no_grad():
        last.weight -= last.weight.mean(0)
        last.bias -= last.bias.mean()
        last.weight *= 30
        last.bias *= 30


def trained(
    prepared: Prepared, rewritten: Rewritten, data: Batches, options: Options, steps: int = STEPS
) -> distilling.Distilled:
    """In place; the last batch is held out."""
    settings = settings_of(prepared, data.owners, options)
    held = [len(data.batches) - 1]
    return distil(prepared.programs, rewritten, data.batches, held, settings, steps)


def shaken(module: nn.Module, share: float) -> None:
    """Noise on every parameter, relative to its size."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter += share * noise * parameter.square().mean().sqrt()


@pytest.mark.parametrize("name", KINDS)
def test_an_exact_network_stays_as_it_is(name: str) -> None:
    """Nothing can be won, whatever is tried."""
    prepared, rewritten, data, options = planted(name)
    before = outputs(rewritten.module, data.batches[0])
    found = trained(prepared, rewritten, data, options, steps=10)
    assert abs(found.before) < EXACT
    assert worst(outputs(rewritten.module, data.batches[0]), before) < STILL


@pytest.mark.parametrize("name", KINDS)
def test_a_shaken_network_comes_back(name: str) -> None:
    """Some of what noise on all parameters cost is won back on images held out, in few steps."""
    prepared, rewritten, data, options = planted(name)
    held = data.batches[-1]
    exact = outputs(rewritten.module, held)
    shaken(rewritten.module, 0.1)
    before = worst(outputs(rewritten.module, held), exact)
    trained(prepared, rewritten, data, options)
    assert worst(outputs(rewritten.module, held), exact) < WON * before


@pytest.mark.parametrize("name", KINDS[:2])
def test_the_loss_is_that_of_the_state_that_is_kept(name: str) -> None:
    """Trained again from there, what is left before is what was left after."""
    prepared, rewritten, data, options = planted(name)
    shaken(rewritten.module, 0.1)
    found = trained(prepared, rewritten, data, options)
    assert trained(prepared, rewritten, data, options, steps=1).before == found.after


def test_steps_that_lead_astray_are_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """At any rate no state is kept that is worse than the first."""
    prepared, rewritten, data, options = planted("narrow_resnet")
    shaken(rewritten.module, 0.1)
    before = clone(rewritten.module)
    monkeypatch.setattr(distilling, "_share", lambda _: 30.0)
    found = trained(prepared, rewritten, data, options, steps=5)
    assert found.steps == 0
    assert found.after == found.before
    assert all(torch.equal(before[key], value) for key, value in clone(rewritten.module).items())


def test_gradients_are_those_of_the_divergence_of_answers() -> None:
    """Written out once more, of shared outputs without owners: towards the mean of the sources."""
    models = precise(NETWORKS["narrow_resnet"], 0, 1)
    for model in models:
        confident(model)
    prepared, rewritten, data, options = halved("narrow_resnet", models, "shared")
    settings = settings_of(prepared, data.owners, options)
    heads = distilling._heads(prepared.programs, rewritten, data.batches, settings)
    network = distilling._Network(rewritten.module, heads, data.batches)
    with network.trainable(rewritten.sites) as parameters, torch.enable_grad():
        network.descend(range(len(data.batches)))
        found = [p.grad for p in parameters]
        images = torch.cat([batch[0] for batch in data.batches])
        wanted = torch.stack([model(images) for model in models]).mean(0).softmax(1)
        made = rewritten.module(images)
        loss = nn.functional.kl_div(made.log_softmax(1), wanted, reduction="batchmean")
        expected = torch.autograd.grad(loss, parameters)
    assert len(found) > 10
    assert worst([g for g in found if g is not None], expected) < 1e-9


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(("name", "heads"), list(zip(KINDS, HEADS, strict=False)))
def test_merged_networks_answer_images_held_out_better(name: str, heads: str) -> None:
    """Or are as without it; the report says which, and sources stay as they are."""
    models = precise(NETWORKS[name], 0, 1)
    before = [clone(model) for model in models]
    plain = merge(name, models, flops=0.7, heads=heads)
    result = merge(name, models, flops=0.7, heads=heads, distil=5)
    (told,) = [w for w in result.report.warnings if "distilled" in w]
    assert [clone(m).keys() for m in models] == [b.keys() for b in before]
    for model, own in zip(models, before, strict=True):
        assert all(torch.equal(own[key], value) for key, value in clone(model).items())
    same = all(
        torch.equal(value, clone(plain.model)[key]) for key, value in clone(result.model).items()
    )
    assert same == told.startswith("not distilled")
    assert result.recipe["distil"] == 5


def test_norms_keep_what_they_see_and_compute_what_they_did() -> None:
    """After training, as after fitting: their inputs' mean and variance."""
    _, rewritten, data, _ = planted("narrow_resnet")
    module = rewritten.module
    shaken(module, 0.3)
    before = outputs(module, data.batches[0])
    restate(module, data.batches)
    assert worst(outputs(module, data.batches[0]), before) < SAME
    seen: dict[str, torch.Tensor] = {}
    norms = {n: m for n, m in module.named_modules() if isinstance(m, nn.BatchNorm2d)}
    for name, norm in norms.items():
        norm.register_forward_pre_hook(lambda _, given, name=name: seen.update({name: given[0]}))
    module(torch.cat([batch[0] for batch in data.batches]))
    for name, norm in norms.items():
        variance, mean = torch.var_mean(seen[name].detach(), (0, 2, 3), correction=0)
        assert worst([norm.running_mean, norm.running_var], [mean, variance]) < SAME
    assert len(norms) > 3


def test_all_but_every_eighth_image_of_every_owner_is_trained_on() -> None:
    """No image is on both sides, and none is lost."""
    images = torch.arange(90.0).reshape(90, 1, 1, 1)
    data = collect(pf.PerSource([images[:40], images[40:]]), batch_size=3)
    rest, held = held_out(data)
    known = [
        sorted(float(x) for batch in part.batches for x in batch[0].flatten())
        for part in (rest, held)
    ]
    assert sorted(known[0] + known[1]) == images.flatten().tolist()
    assert set(rest.owners) == set(held.owners) == {0, 1}
    assert 90 / 10 <= held.examples <= 90 / 6


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("name", ODD)
def test_any_network_is_trained_or_the_report_says_why(name: str) -> None:
    """Several inputs or outputs, layers over tokens, recurrent ones, layers used twice."""
    models = [NETWORKS[name].make(seed) for seed in (0, 1)]
    result = merge(name, models, width=1.3, distil=2)
    (told,) = [w for w in result.report.warnings if "distilled" in w]
    assert told.startswith("distilled: ") or "nothing was won" in told
    assert all(v.isfinite().all() for v in clone(result.model).values() if v.is_floating_point())


@pytest.mark.usefixtures("few")
def test_the_same_seed_gives_the_same_network_to_the_bit() -> None:
    """Training included."""
    models = precise(NETWORKS["narrow_resnet"], 0, 1)
    one, two = (merge("narrow_resnet", models, flops=0.7, distil=4).model for _ in range(2))
    assert all(torch.equal(value, clone(two)[key]) for key, value in clone(one).items())


def test_fixture_networks_answer_test_images_more_like_their_sources() -> None:
    """At a fifth of one's FLOPs, where fitting layer by layer leaves much."""
    data = pf.PerSource([own[:160] for own in calibration()])
    images = test_set()[0][:500]
    wanted = [of_images(model, images)[0].softmax(1) for model in sources()]

    def left(steps: int) -> float:
        result = pf.merge(list(sources()), data, flops=0.2, trials=0, distil=steps, progress=False)
        found = of_images(result.model, images)
        pairs = zip(found, wanted, strict=True)
        return float(sum((w * (w.log() - f.log_softmax(1))).sum(1).mean() for f, w in pairs))

    assert left(40) < 0.9 * left(0)


NOT_DISTILLED: dict[str, tuple[dict[str, Any], str]] = {
    "at full width": ({"width": 2.0}, "the exact ensemble"),
    "without data": ({"flops": 0.7, "calibration": None}, "no images of the sources' kind"),
    "on few images": ({"flops": 0.7}, "fewer than 64 images a source"),
}


@pytest.mark.parametrize("case", NOT_DISTILLED)
def test_the_report_says_why_nothing_was_trained(case: str) -> None:
    """And no time went into it."""
    network = NETWORKS["narrow_resnet"]
    given, reason = NOT_DISTILLED[case]
    options = {"calibration": network.batch(24, seed=5), "progress": False, "synthetic": 0, **given}
    models = [network.make(seed) for seed in (0, 1)]
    data = options.pop("calibration")
    found = pf.merge(models, data, example_inputs=network.inputs(), distil=3, **options)
    assert any(w.startswith("not distilled: ") and reason in w for w in found.report.warnings)
    assert "distil" not in found.report.seconds


@pytest.mark.usefixtures("few")
def test_what_torch_cannot_differentiate_is_not_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """The merge is as without it; but memory that is too small is an error of ours."""
    models = [NETWORKS["narrow_resnet"].make(seed) for seed in (0, 1)]

    def failing(*_: object, **__: object) -> None:
        raise RuntimeError("derivative for aten::thing is not implemented\nmore")

    monkeypatch.setattr(driver, "distil", failing)
    found = merge("narrow_resnet", models, flops=0.7, distil=3)
    assert "not distilled: derivative for aten::thing is not implemented" in found.report.warnings

    def exhausted(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(driver, "distil", exhausted)
    with pytest.raises(pf.PleasError, match="memory"):
        merge("narrow_resnet", models, flops=0.7, distil=3)


def test_a_negative_number_of_steps_is_refused() -> None:
    """Before anything is done."""
    with pytest.raises(pf.OptionError, match="distil"):
        pf.merge([], torch.zeros(8, 3, 8, 8), flops=0.7, distil=-1)


def test_outputs_that_all_sources_teach_are_trained_towards_all() -> None:
    """Also where the layers are those of one source."""
    (model,) = precise(NETWORKS["narrow_resnet"], 0)
    prepared, rewritten, taught = first_alone("narrow_resnet", [model, otherwise(model)])
    batches = [doubled(NETWORKS["narrow_resnet"].batch(16, seed=k)) for k in (5, 6)]
    settings = settings_of(prepared, (None, None), Options(Budget(flops=1.0), heads="shared"))
    values = []
    for sites in (rewritten.sites, taught):
        network = replace(rewritten, sites=sites)
        (head,) = distilling._heads(prepared.programs, network, batches, settings).values()
        values.append(torch.cat([head.wanted[k] for k in (0, 1)]))
    own, other = (torch.cat([m(*b) for b in batches]).detach() for m in (model, otherwise(model)))
    assert worst([values[0]], [own.softmax(1)]) < SAME
    assert worst([values[1]], [((own + other) / 2).softmax(1)]) < SAME
