"""Inputs made from what norms keep: in place of data, and beside too few or foreign images."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pleas_fx as pf
from fixtures.load import calibration, sources, test_set
from passes._lockstep import Batch
from passes.lower import lower
from passes.synthesise import ENOUGH, divergence, synthesise
from passes.trace import trace
from pleas_fx import candidates, complement, settling
from pleas_fx.calibration import Batches
from pleas_fx.ir import Program
from tests.conftest import AS_SHIPPED
from tests.merging import clone, of_images, outputs, worst
from tests.networks import NETWORKS

EXAMPLE = torch.zeros(2, 1, 28, 28)


@pytest.fixture(autouse=True)
def as_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests look at nothing and make nothing beside their data."""
    for name, value in AS_SHIPPED.items():
        monkeypatch.setattr(complement, name, value)
    for name in ("MOST", "BESIDE"):  # fewer than as shipped: these are the larger networks
        monkeypatch.setattr(complement, name, 32)


@cache
def programs() -> tuple[Program, ...]:
    """The fixtures' networks as the passes see them."""
    return tuple(lower(trace(model, (EXAMPLE,))) for model in sources())


@cache
def made(first: int, second: int, seed: int) -> Sequence[Sequence[Batch]]:
    """So many inputs for each source."""
    return synthesise(programs(), (EXAMPLE,), (first, second), seed=seed)


def own(images: int) -> list[Tensor]:
    """Calibration images of each source."""
    return [given[:images] for given in calibration()]


def merged(data: pf.PerSource | None, **options: Any) -> pf.MergeResult:
    """The fixtures' networks, without contest; equal inputs are made once for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(complement, "synthesise", lambda _, __, wanted, *, seed: made(*wanted, seed))
        return pf.merge(sources(), data, **{"trials": 0, "progress": False} | options)


def correct(result: pf.MergeResult) -> float:
    """Accuracy of both heads on their own classes, on every fourth test image."""
    images, labels = (t[::4] for t in test_set())
    low = labels < 5
    first, second = of_images(result.model, images)
    right = (first.argmax(1) == labels)[low].sum() + (second.argmax(1) == labels - 5)[~low].sum()
    return float(right) / len(labels)


def test_made_inputs_give_norms_what_they_keep() -> None:
    """About what images of the training data give; noise is the negative control."""
    for program, inputs, real in zip(programs(), made(32, 32, 0), own(32), strict=True):
        noise = torch.randn(64, 1, 28, 28, generator=torch.Generator().manual_seed(0))
        assert divergence(program, inputs[0]) < 1.5 * ENOUGH
        assert divergence(program, (real,)) < complement.FOREIGN / 5
        assert divergence(program, (noise,)) > complement.FOREIGN


def test_images_of_another_kind_or_scale_are_told_apart() -> None:
    """Negatives, and pixels up to 255 instead of the normalised ones."""
    images = own(16)[0]
    assert divergence(programs()[0], (images,)) < complement.FOREIGN / 2
    assert divergence(programs()[0], (-images,)) > complement.FOREIGN
    assert divergence(programs()[0], (255 * images,)) > 10 * complement.FOREIGN


def test_without_data_a_merge_is_nearly_as_good_as_with_them() -> None:
    """At one network's FLOPs; averages of weights, the control, are far from it."""
    free, averaged = (
        merged(None, flops=1.0, example_inputs=EXAMPLE, synthetic=number) for number in (None, 0)
    )
    fitted = merged(pf.PerSource(own(320)), flops=1.0)
    assert correct(free) > correct(fitted) - 0.02
    assert correct(averaged) < correct(free) - 0.3
    assert "64 inputs that give" in free.report.warnings[-1]
    assert "nothing was fitted" in averaged.report.warnings[-1]


def test_few_images_are_complemented() -> None:
    """Four images of each source, and 32 made for each; more aren't made where there are enough."""
    few = merged(pf.PerSource(own(4)), flops=0.5)
    alone = merged(pf.PerSource(own(4)), flops=0.5, synthetic=0)
    assert correct(few) > correct(alone) + 0.05
    assert "64 inputs" in few.report.warnings[-1]
    enough = merged(pf.PerSource(own(64)), flops=0.5)
    assert not any("inputs" in warning for warning in enough.report.warnings)


def test_foreign_images_are_named_and_complemented() -> None:
    """Images that weren't normalised: each source says so."""
    foreign = [255 * images for images in own(64)]
    with_made, without = (
        merged(pf.PerSource(foreign), flops=1.0, synthetic=number) for number in (None, 0)
    )
    named = [w for w in with_made.report.warnings if "look unlike" in w]
    assert [f"source {s} was trained on" in w for s, w in enumerate(named)] == [True, True]
    assert correct(with_made) > correct(without) + 0.1


def test_images_of_another_kind_take_one_source_as_it_is() -> None:
    """They can't judge; on images of the training data, the control, candidates compete."""
    usual, foreign = own(64), [255 * images for images in own(64)]
    notes = [
        merged(pf.PerSource(data), flops=budget, heads="shared").plan.note
        for data, budget in ((usual, 0.7), (foreign, 0.7), (foreign, 1.4))
    ]
    assert ["for want of images" in note for note in notes] == [False, True, False]


def test_where_images_say_nothing_no_plans_are_contested(monkeypatch: pytest.MonkeyPatch) -> None:
    """What they would choose isn't taken; on the sources' own, the control, they are contested."""
    contested: list[bool] = []
    contest = settling.contested

    def watched(*given: Any) -> object:
        contested.append(True)
        return contest(*given)

    monkeypatch.setattr(settling, "contested", watched)
    for data in ([255 * images for images in own(64)], own(64)):
        assert contested == []
        merged(pf.PerSource(data), flops=0.7, heads="shared", trials=1)
    assert contested == [True]


def test_what_takes_long_is_only_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside data; without any there is no other way."""
    monkeypatch.setattr(complement, "AFFORDABLE", 1.0)
    found = complement.complement(
        programs(), pf.calibration.collect(255 * own(8)[0]), (EXAMPLE,), images=None, seed=0
    )
    assert found.made is None
    assert len(found.notes) == 2


def test_made_inputs_dont_judge_where_there_are_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are fitted on in both halves."""
    network = NETWORKS["resnet"]
    models = [network.make(0), network.make(1)]
    fitted: list[int] = []
    judged: list[int] = []
    halves = settling.split

    def watched(programs: Any, data: Any, fit_on: candidates.FitOn, made: Any) -> Any:
        def watching(images: Batches) -> candidates.Fit:
            fitted.append(images.examples)
            return fit_on(images)

        found = halves(programs, data, watching, made)
        judged.extend(half.judged.examples for half in found)
        return found

    monkeypatch.setattr(settling, "split", watched)
    (images,) = network.batch(8, 0)
    pf.merge(models, images, flops=1.0, heads="shared", progress=False, synthetic=3)
    assert judged == [4, 4]
    assert fitted == [4 + 6, 4 + 6]


def test_the_same_seed_makes_the_same_inputs_and_sources_stay_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To the bit; another seed makes others."""
    monkeypatch.setattr("passes.synthesise.STEPS", 20)
    held = [clone(model) for model in sources()]
    first, second, other = (
        synthesise(programs(), (EXAMPLE,), (8, 4), seed=seed)[0][0][0] for seed in (0, 0, 5)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    for model, before in zip(sources(), held, strict=True):
        assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.requires_grad for p in programs()[0].module.parameters())


def test_networks_without_statistics_are_merged_by_their_weights() -> None:
    """GroupNorm keeps none: a planted copy is still found, and the report says what was done."""
    network = NETWORKS["group_norm_resnet"]
    model, inputs = network.make(0), network.inputs()
    symmetry = pf.permutation_groups(model, inputs)
    planted = symmetry.apply(model, symmetry.random(1))
    result = pf.merge(
        [model, planted], width=1.0, heads="shared", example_inputs=inputs, progress=False
    )
    assert worst(outputs(result.model, inputs), outputs(model, inputs)) < 1e-3
    assert "nothing was fitted" in result.report.warnings[-1]


class TwoInputs(nn.Module):
    """An image, and the numbers of a table's rows."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Conv2d(6, 4, 3)
        )
        self.register_buffer("table", torch.randn(5, 4))

    def forward(self, image: Tensor, row: Tensor) -> Tensor:
        """The image's features, shifted by a row."""
        table: Tensor = self.table
        return self.body(image).mean((2, 3)) + table[row]


def test_inputs_that_are_no_images_stay_as_the_example_has_them() -> None:
    """Only floating point inputs are moved."""
    inputs = torch.randn(2, 3, 9, 9), torch.tensor([4, 2])
    ((batch,),) = synthesise([lower(trace(TwoInputs().eval(), inputs))], inputs, (5,), seed=0)
    assert batch[0].shape == (5, 3, 9, 9)
    assert torch.equal(batch[1], torch.full((5,), 4))


def test_where_nothing_can_be_made_the_merge_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a network that takes no other number of inputs, say; the report tells why."""

    def refused(*_: object) -> float:
        raise RuntimeError("shape '[4, 6]' is invalid for input of size 96")

    monkeypatch.setattr(complement, "divergence", refused)
    data = pf.calibration.collect(own(8)[0])
    found = complement.complement(programs(), data, (EXAMPLE,), images=None, seed=0)
    assert found.made is None
    assert "no inputs could be made for the sources (shape" in found.notes[0]


def test_fewer_than_none_are_refused() -> None:
    """One clear error."""
    with pytest.raises(pf.OptionError, match="synthetic"):
        pf.merge(sources(), own(8)[0], synthetic=-1)
