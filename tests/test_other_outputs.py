"""Sources that answer for other numbers of classes: two detectors, each for its own objects.

Some are wider before their outputs where there are more classes (YOLO's smallest ones).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pleas_fx as pf
from pleas_fx.errors import GraphError, IncompatibleModelsError
from tests import composed_networks as composed
from tests import small_networks as small
from tests.merging import outputs, worst
from tests.networks import noise
from tests.randomise import seeded

EXACT, SINGLE = 1e-9, 1e-5
(IMAGES,) = noise((24, 3, 16, 16))
Make = Callable[[int], nn.Module]


class Ends(nn.Module):
    """A layer for the classes, whose size the code behind it writes out in several ways."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Conv2d(8, 4 + classes, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Slices, a narrow, an unflatten, a size that is computed."""
        x = self.head(self.stem(x))
        scores = x[:, 4 : 4 + self.classes].flatten(2)
        again = x.narrow(1, 4, self.classes).mean((2, 3)).unflatten(1, (self.classes, 1))
        return x[:, :4], scores, again, x.reshape(x.shape[0], x.shape[1], -1)


class Branch(nn.Module):
    """Classes read from a branch as wide as there are classes, beside boxes (YOLO11)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        wide = 2 * classes
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU())
        self.classes = nn.Sequential(
            nn.Conv2d(8, wide, 1),
            nn.BatchNorm2d(wide),
            nn.SiLU(),
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide),
            nn.GroupNorm(2, wide),
            nn.ReLU(),
            nn.Conv2d(wide, classes, 1),
        )
        self.boxes = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Boxes, then classes."""
        x = self.stem(x)
        return torch.cat((self.boxes(x), self.classes(x)), 1)


NETWORKS: dict[str, Make] = {
    "bins": composed.BinsNet,
    "anchors": composed.AnchorsNet,
    "pyramid": small.Detector,
    "ends": Ends,
    "branch": Branch,
}


def pair(make: Make, *classes: int) -> list[nn.Module]:
    """Float64, one network for each number of classes."""
    return [seeded(lambda n=n: make(n), n).double() for n in classes]


every_network = pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)


@every_network
@pytest.mark.parametrize("classes", [(5, 7), (7, 5), (4, 2, 9)], ids=str)
def test_side_by_side_each_says_what_it_said(make: Make, classes: tuple[int, ...]) -> None:
    """To rounding, in whatever order they come."""
    models, images = pair(make, *classes), IMAGES.double()
    result = pf.merge(models, images, width=float(len(models)), progress=False)
    wanted = [t for model in models for t in outputs(model, (images,))]
    assert worst(outputs(result.model, (images,)), wanted) < EXACT


@every_network
def test_a_budget_is_met_and_every_output_has_its_own_size(make: Make) -> None:
    """Everything before the outputs is merged or thinned."""
    models = pair(make, 5, 7)
    result = pf.merge(models, IMAGES.double(), flops=1.0, progress=False)
    sizes = [own.flops for own in result.report.sources]
    assert result.report.merged.flops <= 1.0001 * sum(sizes) / 2
    found = outputs(result.model, (IMAGES.double(),))
    wanted = [t.shape for model in models for t in outputs(model, (IMAGES.double(),))]
    assert [t.shape for t in found] == wanted


@every_network
def test_it_is_saved_and_goes_to_onnx(make: Make, tmp_path: Path) -> None:
    """As any other."""
    models = [seeded(lambda n=n: make(n), n) for n in (5, 7)]
    result = pf.merge(models, IMAGES, flops=1.25, progress=False)
    result.save(tmp_path / "out")
    again = pf.load(tmp_path / "out")
    assert worst(outputs(again, (IMAGES,)), outputs(result.model, (IMAGES,))) < SINGLE


def test_boxes_beside_each_other_are_refused_with_what_to_do() -> None:
    """Sides of boxes are decoded together: there is no joint output of two such heads."""
    with pytest.raises(GraphError, match='heads="separate"'):
        pf.merge(pair(composed.BinsNet, 5, 7), IMAGES.double(), width=1.0, heads="joint")


@pytest.mark.parametrize("synthetic", [0, None])
def test_without_data(synthetic: int | None) -> None:
    """By the weights, and by inputs that are made."""
    models, images = pair(Branch, 5, 3), IMAGES[:2].double()
    options = {"example_inputs": images, "synthetic": synthetic, "progress": False}
    result = pf.merge(models, None, flops=1.2, **options)  # type: ignore[arg-type]
    shapes = [t.shape[1] for t in outputs(result.model, (images,))]
    assert shapes == [4 + 5, 4 + 3]


def test_other_widths_stay_apart_and_whole() -> None:
    """Nothing pairs channels of different numbers; everything else is planned."""
    result = pf.merge(pair(Branch, 5, 3), IMAGES.double(), flops=1.0, progress=False)
    kept = {
        g.size: (len(g.merged), len(g.dropped[0]), len(g.dropped[1])) for g in result.plan.groups
    }
    assert kept[2 * 5] == (0, 0, 0)
    assert any("1 groups have other numbers of channels" in w for w in result.report.warnings)
    assert sum(kept[8]) > 0


class Between(nn.Module):
    """A layer of some kernel, and how many parts what another makes is cut into."""

    def __init__(self, kernel: int = 3, parts: int = 2) -> None:
        super().__init__()
        self.parts = parts
        self.first, self.second = nn.Conv2d(3, 8, kernel), nn.Conv2d(8, 8, 3)
        self.last = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = torch.cat(self.second(self.first(x).relu()).chunk(self.parts, 1)[::-1], 1)
        return self.last(x.mean((2, 3)))


@pytest.mark.parametrize(
    ("other", "named"),
    [(Between(kernel=1), "node first .*kernel_size"), (Between(parts=4), "node chunk .*arguments")],
    ids=["kernel", "parts"],
)
def test_what_computes_something_else_is_another_graph(other: nn.Module, named: str) -> None:
    """Negative control: only numbers of channels may differ; the first difference is named."""
    with pytest.raises(IncompatibleModelsError, match=named):
        pf.merge([Between().eval(), other.eval()], IMAGES, width=1.0, progress=False)


class Marked(Between):
    """Writes a NaN where something is wrong, before any layer."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return super().forward(x.masked_fill(x > 1e9, float("nan")).nan_to_num())


def test_a_nan_in_the_code_is_the_same_in_all_sources() -> None:
    """Although it isn't equal to itself."""
    models = [seeded(Marked, seed).double() for seed in (0, 1)]
    result = pf.merge(models, IMAGES.double(), width=2.0, progress=False)
    wanted = [t for model in models for t in outputs(model, (IMAGES.double(),))]
    assert worst(outputs(result.model, (IMAGES.double(),)), wanted) < EXACT
    assert result.report.merged.flops == sum(own.flops for own in result.report.sources)
