"""The real pair: two ResNets trained on Fashion-MNIST classes 0-4 and 5-9."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

import pleas_fx as pf
from fixtures.load import calibration, sources, test_set
from tests.merging import of_images

HALF = 5  # classes of a source
NOISE = 0.01  # two standard errors of an accuracy on 4,000 images, and then some


@cache
def images() -> tuple[Tensor, Tensor]:
    """Test images and labels."""
    inputs, labels = test_set()
    return inputs, labels.long()


@cache
def some() -> tuple[Tensor, Tensor]:
    """Calibration images of each source."""
    first, second = calibration()
    return first[:320], second[:320]


def task_average(outputs: tuple[Tensor, Tensor]) -> float:
    """Mean over the sources of a head's accuracy on its own classes."""
    _, labels = images()
    low = labels < HALF
    first = (outputs[0][low].argmax(1) == labels[low]).float().mean()
    second = (outputs[1][~low].argmax(1) == labels[~low] - HALF).float().mean()
    return float(first + second) / 2


@cache
def ensemble() -> tuple[Tensor, Tensor]:
    """The sources' own outputs."""
    (first,), (second,) = (of_images(model, images()[0]) for model in sources())
    return first, second


@cache
def merged(method: str, resource: str, budget: float) -> tuple[Tensor, Tensor]:
    """Outputs of a merge with separate heads, of unlabelled images without their owners."""
    a, b = sources()
    data = torch.cat(some())[torch.randperm(640, generator=torch.Generator().manual_seed(0))]
    result = pf.merge([a, b], data, method=method, progress=False, **{resource: budget})  # type: ignore[arg-type]
    first, second = of_images(result.model, images()[0])
    return first, second


def test_full_width_is_the_ensemble() -> None:
    """width=2 agrees with the sources to 1e-4."""
    for found, expected in zip(merged("pleas", "width", 2.0), ensemble(), strict=True):
        assert float((found - expected).abs().max()) < 1e-4 * float(expected.abs().max())


@pytest.mark.parametrize(("budget", "points"), [(1.0, 0.015), (0.5, 0.03)])
def test_a_merge_is_close_to_the_ensemble(budget: float, points: float) -> None:
    """Within 1.5 points of it at one network's FLOPs, within 3 at half of them."""
    assert task_average(merged("pleas", "flops", budget)) > task_average(ensemble()) - points


@pytest.mark.parametrize(
    ("method", "resource", "budget", "ours"),
    [
        ("average", "width", 1.0, 1.0),
        ("permute", "width", 1.0, 1.0),
        ("pleas-paper", "width", 1.0, 1.0),
        ("side-by-side", "flops", 1.0, 1.0),
        ("side-by-side", "flops", 0.5, 0.5),
    ],
)
def test_no_baseline_is_better_at_equal_flops(
    method: str, resource: str, budget: float, ours: float
) -> None:
    """Beyond noise, at the same executed FLOPs."""
    baseline = task_average(merged(method, resource, budget))
    assert task_average(merged("pleas", "flops", ours)) > baseline - NOISE


def test_a_joint_head_with_owners_beats_the_joint_ensemble() -> None:
    """Ten classes at one network's FLOPs: at least 6 points above the ensemble's argmax."""
    a, b = sources()
    result = pf.merge([a, b], pf.PerSource(list(some())), flops=1.0, heads="joint", progress=False)
    inputs, labels = images()
    found = float((of_images(result.model, inputs)[0].argmax(1) == labels).float().mean())
    alone = float((torch.cat(ensemble(), 1).argmax(1) == labels).float().mean())
    assert result.report.merged.flops <= result.report.sources[0].flops * 1.000001
    assert found > alone + 0.06


def test_a_joint_head_answers_as_owners_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same plan, least squares alone has fewer of ten classes right.

    By more than two standard errors of what only one of the two networks has right: at a tenth of
    a source's FLOPs, since the more is left, the less there is to gain.
    """
    inputs, labels = images()

    def right() -> Tensor:
        data = pf.PerSource(list(some()))
        result = pf.merge(list(sources()), data, flops=0.1, heads="joint", trials=0, progress=False)
        return of_images(result.model, inputs)[0].argmax(1) == labels

    answered = right()
    monkeypatch.setattr("passes.fit.answer", lambda *_: {})
    plain = right()
    gained, lost = int((answered & ~plain).sum()), int((plain & ~answered).sum())
    assert gained - lost > 2 * (gained + lost) ** 0.5


def test_named_classes_share_outputs() -> None:
    """classes= puts equal names on one output; the control has them side by side."""
    a, b = sources()
    names = [["a", "b", "c", "d", "e"], ["e", "f", "g", "h", "i"]]
    inputs = some()[0][:2]
    shared = pf.merge(
        [a, b], some()[0][:64], width=1.0, heads="joint", classes=names, progress=False
    )
    apart = pf.merge([a, b], some()[0][:64], width=1.0, heads="joint", progress=False)
    assert shared.model(inputs).shape == (2, 9)
    assert apart.model(inputs).shape == (2, 10)
