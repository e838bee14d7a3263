"""Matching: outputs are compared in place; what activations can't tell apart, weights do."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import pleas_fx as pf
from passes import match
from passes._problems import problems
from passes.groups import groups
from passes.match import identity_matching, match_activations
from passes.observe import Point, observe
from passes.trace import trace
from pleas_fx.algebra.moments import Between, Moments
from pleas_fx.algebra.similarity import cross_correlation, similarities
from pleas_fx.algebra.weighting import Root
from pleas_fx.ir import Axis
from tests.merging import outputs, worst
from tests.networks import noise
from tests.randomise import seeded

INPUTS = noise((16, 3, 5, 5))
DOUBLE = tuple(x.double() for x in INPUTS)


def classifier(classes: int) -> nn.Module:
    """A small network with many outputs."""
    stem = (nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*stem, nn.Linear(6, classes))


def test_many_outputs_are_not_compared_pair_by_pair() -> None:
    """20,000 classes: all pairs would be 3 GB."""
    model = seeded(lambda: classifier(20_000), 0)
    symmetry = pf.permutation_groups(model, INPUTS)
    copy = symmetry.apply(model, symmetry.random(1))
    tracemalloc.start()
    result = pf.merge([model, copy], INPUTS[0], width=1.0, heads="shared", progress=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 400_000_000
    assert worst(outputs(result.model, INPUTS), outputs(model, INPUTS)) < 1e-5


def test_outputs_agree_as_far_as_they_correlate() -> None:
    """Block by block what the whole matrix has on its diagonal."""
    programs = [trace(seeded(lambda: classifier(2_500), seed).double(), DOUBLE) for seed in (0, 1)]
    symmetries = [groups(program) for program in programs]
    statistics = observe(programs, symmetries, [DOUBLE], seed=0)
    found = match_activations(programs, symmetries[0], statistics)
    group = max(symmetries[0].fixed, key=lambda g: g.size)
    (point,) = statistics.points(group.id)
    whole = cross_correlation(point.moments, slice(0, 2_500), slice(2_500, 5_000))
    wanted = whole.diagonal()
    assert float((torch.from_numpy(found.similarity[group.id]) - wanted).abs().max()) < 1e-12
    assert float(wanted.std()) > 0.1


@pytest.mark.parametrize("block", [1, 5, 12, 99])
def test_wide_groups_are_compared_block_by_block(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scores, and so the matching, are those of all pairs at once."""
    programs = [trace(dozing(seed), DOUBLE) for seed in (0, 1)]
    symmetries = [groups(program) for program in programs]
    statistics = observe(programs, symmetries, [DOUBLE], seed=0)
    group = max(symmetries[0].groups, key=lambda g: g.size)
    places = match._Places([p.moments for p in statistics.points(group.id)], group.size, 2)
    own, other = slice(0, group.size), slice(group.size, 2 * group.size)
    pairs = [similarities(moments, own, other) for moments in places.moments]
    wanted = sum(one + match.TIE * two for one, two in pairs) / len(pairs)
    monkeypatch.setattr(match, "BLOCK", block)
    assert float((torch.from_numpy(places.score(0, 1)) - wanted).abs().max()) < 1e-14
    assert float(wanted.std()) > 0.1


def dozing(seed: int) -> nn.Module:
    """A network in which four channels of the second layer wake up on bright images only."""
    middle = nn.Conv2d(12, 12, 1, groups=3)
    layers = (nn.Conv2d(3, 12, 3), nn.ReLU(), middle, nn.ReLU(), nn.Conv2d(12, 4, 3))
    model = seeded(lambda: nn.Sequential(*layers), seed).double()
    with torch.no_grad():
        model[0].bias[:4] -= 50.0
        model[2].bias[:4] = 0.1
    return model


def silent_of(model: nn.Module) -> list[int]:
    """Channels of the second layer that don't vary on the calibration."""
    return torch.nonzero(model[:3](DOUBLE[0]).flatten(2).var((0, 2)) < 1e-20).flatten().tolist()


def test_channels_silent_on_the_calibration_are_matched_by_their_weights() -> None:
    """A permuted copy merges into the original on images that wake them, too."""
    model = dozing(0)
    symmetry = pf.permutation_groups(model, DOUBLE)
    copy = symmetry.apply(model, symmetry.random(1))
    bright = tuple(1000 * x for x in DOUBLE)
    assert len(silent_of(model)) == len(silent_of(copy)) == 4
    for sources in ([model, copy], [model, copy, model]):
        merged = pf.merge(sources, DOUBLE[0], width=1.0, heads="shared", progress=False).model
        assert worst(outputs(merged, bright), outputs(model, bright)) < 1e-9


def test_weights_never_move_channels_that_vary() -> None:
    """The same activations, other weights: only partners of silent channels differ."""
    model = dozing(0)
    symmetry = pf.permutation_groups(model, DOUBLE)
    sources = [model, symmetry.apply(model, symmetry.random(1)), dozing(1)]
    programs = [trace(source, DOUBLE) for source in sources]
    statistics = observe(programs[:2], [symmetry] * 2, [DOUBLE], seed=0)
    (group,) = (g for g in symmetry.groups if Axis("2.weight", 0) in g.axes)
    one, other = (
        match_activations([programs[0], second], symmetry, statistics).partner[group.id][1]
        for second in programs[1:]
    )
    silent = np.isin(np.arange(group.size), silent_of(model))
    assert (one[~silent] == other[~silent]).all()
    assert (one[silent] != other[silent]).any()


def test_places_that_are_the_same_on_all_images_say_nothing() -> None:
    """Such as the queries of a class token: a plan's predicted errors stay what they were."""
    model = seeded(lambda: classifier(4), 0)
    programs = (trace(model, INPUTS),) * 2
    symmetry = groups(programs[0])
    (group,) = symmetry.groups
    seen = observe(programs, (symmetry,) * 2, [INPUTS], seed=0)
    still = Moments.zeros(2 * group.size)
    still.add(torch.ones(16, 2 * group.size))
    made = {group.id: (*seen.points(group.id), Point("still", still))}
    with_it = replace(seen, read={}, made=made)
    without = replace(seen, read={}, made={group.id: seen.points(group.id)})
    matching = identity_matching(symmetry, 2)
    (found,), (expected,) = (
        problems(programs, (symmetry,) * 2, statistics, matching, (group,))
        for statistics in (with_it, without)
    )
    assert torch.equal(found.covariance, expected.covariance)
    for q, wanted in zip(found.weighting, expected.weighting, strict=True):
        assert torch.equal(q.whole(), wanted.whole())
    assert bool(torch.isfinite(found.covariance).all())


def test_wide_groups_match_on_what_is_kept_between_the_sources() -> None:
    """Where they are made only pairs of sources are compared; a planted permutation is found."""
    stem = (nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten())
    model = seeded(
        lambda: nn.Sequential(*stem, nn.Linear(45, 600), nn.ReLU(), nn.Linear(600, 4)), 0
    )
    symmetry = pf.permutation_groups(model, INPUTS)
    (group,) = (g for g in symmetry.groups if g.size == 600)
    order = symmetry.random(1)
    programs = [trace(m, INPUTS) for m in (model, symmetry.apply(model, order))]
    many = noise((700, 3, 5, 5))
    statistics = observe(programs, [symmetry] * 2, [many], seed=0)
    (made,), (read,) = (kind[group.id] for kind in (statistics.made, statistics.read))
    assert isinstance(made.moments, Between)
    assert isinstance(read.moments, Moments)
    found = match_activations(programs, symmetry, statistics)
    (planned,) = problems(programs, (symmetry,) * 2, statistics, found, (group,))
    reader = model[5].weight.detach()
    read_alike = reader.T @ reader / (reader.T @ reader).norm()
    for q in planned.weighting:
        assert isinstance(q, Root)
        assert float((q.whole() / q.whole().norm() - read_alike).abs().max()) < 1e-6
    partner = found.partner[group.id][1]
    assert (order.order[group.id][partner] == np.arange(600)).all()
    assert found.similarity[group.id].min() > 1 - 1e-5
    assert found.similarity[group.id].max() < 1 + 1e-5
