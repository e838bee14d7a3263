"""The certificate's own evidence: weights under which right groups pass and wrong ones don't."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from passes._randomised import LOUD, _amplification, randomised, steadied
from passes.certify import certify
from passes.groups import groups
from passes.trace import trace
from pleas_fx.ir import Program, Symmetry
from tests.networks import NETWORKS, noise
from tests.randomise import seeded

IMAGE = (4, 3, 5, 5)
CHAOS, MORE = 20.0, 1280.0  # gains of networks that blow rounding up


class Chaotic(nn.Module):
    """Gates that swing with what the gates before them do, as a deep SENet's may."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.gates = nn.ModuleList(nn.Conv2d(6, 6, 1) for _ in range(12))
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Conv2d(6, 5, 1)
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        for gate in self.gates:
            x = torch.sin(self.gain * gate(x))
        return self.head(x)


def program(model: nn.Module) -> Program:
    """The traced network on a fixed input."""
    return trace(model, noise(IMAGE))


def without_one_axis(symmetry: Symmetry) -> Symmetry:
    """A wrong symmetry: an axis of the first group stays where it is."""
    axis = symmetry.groups[0].axes[-1]
    axes = {a: c for a, c in symmetry.layout.axes.items() if a != axis}
    return replace(symmetry, layout=replace(symmetry.layout, axes=axes))


@pytest.mark.parametrize("gain", [CHAOS, MORE])
def test_chaos_is_no_evidence_against_a_group(gain: float) -> None:
    """Rounding that a network blows up doesn't freeze right groups; wrong ones still fail."""
    traced = program(seeded(lambda: Chaotic(gain), 0))
    found = groups(traced)
    assert not certify(traced, found, trials=2, seed=0).certificate.culprits
    assert certify(traced, without_one_axis(found), trials=2, seed=0).certificate.culprits


@pytest.mark.parametrize("gain", [1.0, CHAOS, MORE])
def test_a_network_is_steadied_where_it_is_chaotic(gain: float) -> None:
    """However the source behaves, differences in the input then stay of their size."""
    traced = program(seeded(lambda: Chaotic(gain), 0))
    inputs = tuple(t.double() for t in traced.inputs)
    model, found = randomised(traced.module, inputs, 0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    growth = partial(_amplification, model, inputs, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert (growth(outputs=found) > LOUD) == (gain > 1)
        assert growth(outputs=steadied(model, inputs, found, 0)) < LOUD
    kept = all(value.equal(before[key]) for key, value in model.state_dict().items())
    assert kept == (gain == 1)


def test_no_vector_stays_at_its_initial_value() -> None:
    """Statistics, affine parameters and layer scales differ from channel to channel."""
    traced = trace(Chaotic(1.0), noise(IMAGE))
    inputs = tuple(t.double() for t in traced.inputs)
    for key, value in randomised(traced.module, inputs, 0)[0].state_dict().items():
        if value.is_floating_point():
            assert len(value.flatten(1).unique(dim=0) if value.dim() > 1 else value.unique()) == (
                len(value)
            ), key


@pytest.mark.parametrize("called", ["module", "function"])
def test_deep_networks_still_see_their_inputs(called: str) -> None:
    """Norms called as functions keep the signal's size, too: a constant output proves nothing."""

    class Norm(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            if called == "module":
                return super().forward(x)
            mean, variance = self.running_mean, self.running_var
            return nn.functional.batch_norm(x, mean, variance, self.weight, self.bias)

    sizes = [3, *[24] * 30]
    layers = [nn.Sequential(nn.Conv2d(a, b, 1), Norm(b), nn.ReLU6()) for a, b in pairwise(sizes)]
    traced = program(nn.Sequential(*layers, nn.Conv2d(24, 4, 1)).eval())
    inputs = tuple(t.double() for t in traced.inputs)
    (found,) = randomised(traced.module, inputs, 0)[1]
    assert float((found[0] - found[1]).norm() / found.norm()) > 0.01


def test_one_value_a_channel_is_enough() -> None:
    """A single example after global pooling has no variance: statistics are drawn blindly."""
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6))
    traced = trace(model.append(nn.Conv2d(6, 4, 1)), noise((1, 3, 5, 5)))
    certificate = certify(traced, groups(traced), trials=2, seed=0).certificate
    assert certificate.passed


def test_the_program_keeps_its_weights_and_modes() -> None:
    """Settling the norms happens on a copy."""
    traced = trace(NETWORKS["narrow_resnet"].make(0), NETWORKS["narrow_resnet"].inputs())
    before = {key: value.clone() for key, value in traced.module.state_dict().items()}
    modes = [m.training for m in traced.module.modules()]
    certify(traced, groups(traced), trials=1, seed=0)
    after = traced.module.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert modes == [m.training for m in traced.module.modules()]


def test_casts_to_single_precision_are_certified_in_double() -> None:
    """A dtype written into forward doesn't keep the network from running in float64."""

    class Casting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x).to(torch.float32) * torch.ones(1, dtype=torch.float32)
            return self.last(y.float())

    traced = program(seeded(Casting, 0))
    assert certify(traced, groups(traced), trials=2, seed=0).certificate.max_error < 1e-13
