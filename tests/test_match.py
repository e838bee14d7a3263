"""Matching: what is planned but can't be permuted is compared in place."""

from __future__ import annotations

import tracemalloc

import torch
from torch import nn

import pleas_fx as pf
from passes.groups import groups
from passes.match import match_activations
from passes.observe import observe
from passes.trace import trace
from pleas_fx.algebra.moments import cross_correlation
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
