"""Sizes are read where something is computed anyway: nothing is computed for its size alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pleas_fx as pf
from passes import rewrite
from tests.merging import outputs, worst
from tests.networks import noise
from tests.randomise import seeded

IMAGES = noise((6, 3, 8, 8))[0].double()


class Conditional(nn.Module):
    """Every image's own mix of kernels, as a convolution with a group for every image."""

    def __init__(self, channels: int, experts: int) -> None:
        super().__init__()
        self.channels = channels
        self.routing = nn.Linear(channels, experts)
        self.weight = nn.Parameter(torch.empty(experts, channels * channels * 9))
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Its channels are on an axis with the images: no analysis follows them."""
        images, channels, height, width = x.shape
        mixed = torch.sigmoid(self.routing(x.mean((2, 3)))) @ self.weight
        kernels = mixed.view(images * self.channels, channels, 3, 3)
        rows = x.reshape(1, images * channels, height, width)
        found = F.conv2d(rows, kernels, padding=1, groups=images)
        return self.norm(found.view(images, self.channels, height, width)).relu()


def network() -> nn.Module:
    """Two conditional convolutions between ordinary ones."""
    first, last = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 1)
    return nn.Sequential(first, nn.ReLU(), Conditional(6, 3), Conditional(6, 3), last)


def side_by_side() -> tuple[list[nn.Module], pf.MergeResult]:
    """Two sources, and nothing of them merged."""
    sources = [seeded(network, seed).double() for seed in (0, 1)]
    return sources, pf.merge(sources, IMAGES, width=2.0, synthetic=0, progress=False)


def times(result: pf.MergeResult) -> float:
    """FLOPs, in sources."""
    return result.report.merged.flops / result.report.sources[0].flops


def test_side_by_side_costs_what_the_sources_cost() -> None:
    """No lane of both is computed in between; the outputs are exact."""
    sources, result = side_by_side()
    wanted = [found for source in sources for found in outputs(source, (IMAGES,))]
    assert worst(outputs(result.model, (IMAGES,)), wanted) < 1e-12
    assert times(result) == pytest.approx(2.0, abs=1e-3)


def test_sizes_of_the_first_lane_cost_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: read there, they keep a lane that nothing else reads."""
    monkeypatch.setattr(rewrite, "read_where_computed", lambda graph, equal: None)
    assert times(side_by_side()[1]) > 2.3
