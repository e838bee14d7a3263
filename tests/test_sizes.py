"""Sizes: nothing is computed for its size alone, and channels may be counted by the code."""

from __future__ import annotations

from collections.abc import Callable

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


Part = Callable[[Tensor, int], tuple[Tensor, Tensor]]


class Parted(nn.Module):
    """Two parts of the channels go different ways; ``count`` says how many there are."""

    def __init__(self, part: Part, count: Callable[[Tensor], int]) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 24, 3), nn.Conv2d(24, 10, 1)
        self.last = nn.Conv2d(10, 4, 1)
        self.part, self.count = part, count

    def forward(self, x: Tensor) -> Tensor:
        """Parted and joined."""
        x = self.first(x)
        one, two = self.part(x, self.count(x))
        return self.last(self.second(torch.cat([one.relu(), two.sigmoid()], 1)).relu())


PARTS: dict[str, Part] = {
    "split": lambda x, n: x.split([9, n - 9], 1),
    "torch.split": lambda x, n: torch.split(x, n // 2, dim=1),
    "slices": lambda x, n: (x[:, : n - 15], x[:, n - 15 :]),
    "narrow": lambda x, n: (x.narrow(1, 0, n // 3), x.narrow(1, n // 3, n - n // 3)),
}


def parted(part: Part, count: Callable[[Tensor], int], **options: float) -> list[Tensor]:
    """What the merge of two such networks computes."""
    sources = [seeded(lambda: Parted(part, count), seed).double() for seed in (0, 1)]
    result = pf.merge(sources, IMAGES, synthetic=0, progress=False, **options)
    return outputs(result.model, (IMAGES,))


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("options", [{"flops": 1.0}, {"width": 0.5}, {"width": 2.0}])
def test_channels_that_are_counted_may_be_thinned(name: str, options: dict[str, float]) -> None:
    """Where the code says how many there are, the network is the one with literal numbers."""
    found = parted(PARTS[name], lambda x: x.shape[1], **options)
    assert worst(found, parted(PARTS[name], lambda _: 24, **options)) == 0.0


@pytest.mark.parametrize("name", PARTS)
def test_parts_are_those_of_the_sources(name: str) -> None:
    """At full width; the control: parted elsewhere, they compute something else."""

    def of_sources(part: Part) -> list[Tensor]:
        sources = [seeded(lambda: Parted(part, lambda _: 24), seed).double() for seed in (0, 1)]
        return [found for source in sources for found in outputs(source, (IMAGES,))]

    found = parted(PARTS[name], lambda x: x.shape[1], width=2.0)
    assert worst(found, of_sources(PARTS[name])) < 1e-12
    assert worst(found, of_sources(lambda x, _: x.split([20, 4], 1))) > 1e-3
