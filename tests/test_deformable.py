"""Deformable convolutions: channels move, the places that they are read at don't."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from torch import Tensor, nn
from torchvision.ops import DeformConv2d

import pleas_fx as pf
from tests.merging import outputs, worst
from tests.networks import noise
from tests.randomise import seeded

IMAGES = noise((16, 3, 9, 9))[0]


class Network(nn.Module):
    """The second version (Zhu et al. 2019), which weighs places, or the first."""

    def __init__(self, weighed: bool, groups: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.offsets = nn.Conv2d(8, 18, 3, padding=1)
        self.weights = nn.Conv2d(8, 9, 1) if weighed else None
        self.conv = DeformConv2d(8, 6, 3, padding=1, groups=groups)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Where to look is itself looked up."""
        x = self.stem(x)
        weights = None if self.weights is None else self.weights(x).sigmoid()
        x = self.conv(x, 0.1 * self.offsets(x), weights).relu()
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("weighed", [False, True])
def test_channels_of_deformable_convolutions_move(weighed: bool) -> None:
    """A planted permutation is found; apart, the sources are what they were."""
    models = [seeded(partial(Network, weighed), seed) for seed in range(2)]
    symmetry = pf.permutation_groups(models[0], IMAGES[:2])
    assert symmetry.certificate.passed
    assert {g.size for g in symmetry.groups} == {8, 6}
    held = {str(f.axis.key) for f in symmetry.frozen if f.reason == "says where to sample"}
    assert "offsets.weight" in held
    planted = [models[0], symmetry.apply(models[0], symmetry.random(3))]
    found = pf.merge(planted, IMAGES, width=1.0, heads="shared", progress=False, synthetic=0)
    assert worst(outputs(found.model, (IMAGES,)), outputs(models[0], (IMAGES,))) < 1e-5
    apart = pf.merge(models, IMAGES, width=2.0, progress=False)
    wanted = [t for model in models for t in outputs(model, (IMAGES,))]
    assert worst(outputs(apart.model, (IMAGES,)), wanted) < 1e-5


def test_deformable_convolutions_go_to_onnx(tmp_path: Path) -> None:
    """With the operators of a newer ONNX than other networks need."""
    models = [seeded(partial(Network, True), seed) for seed in range(2)]
    merged = pf.merge(models, IMAGES, width=1.0, progress=False, synthetic=0).model
    parity = pf.export_onnx(merged, IMAGES[:2], tmp_path / "m.onnx")
    assert parity.max_error < 1e-4
    assert parity.exporter == "torch.export, newer operators"


def test_deformable_convolutions_in_groups_are_held() -> None:
    """By name; the control for the rule, which knows one group only."""
    symmetry = pf.permutation_groups(seeded(partial(Network, False, 2), 0), IMAGES[:2])
    assert symmetry.groups == ()
    assert any("deformable convolution in groups" in f.reason for f in symmetry.frozen)
