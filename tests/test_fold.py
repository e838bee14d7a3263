"""Sources of which one was deployed: its batch norms are in the layers before them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

import pleas_fx as pf
from passes.fold import fold
from passes.trace import trace
from tests.merging import clone, outputs, worst
from tests.networks import noise
from tests.randomise import seeded
from tests.small_networks import NarrowResNet, two_convolutions

EXACT = 1e-12  # relative, in float64
fuse_transposed = partial(fuse_conv_bn_eval, transpose=True)
IMAGES = noise((24, 3, 12, 12))[0].double()


def small(*layers: nn.Module) -> nn.Sequential:
    """Layers of eight channels between two others."""
    ends = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU())
    return nn.Sequential(nn.Conv2d(3, 8, 3), *layers, *ends, nn.Linear(6, 4))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "in a row": two_convolutions,
    "residual": NarrowResNet,
    "depthwise": lambda: small(nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8)),
    "transposed": lambda: small(nn.ConvTranspose2d(8, 8, 2, bias=False), nn.BatchNorm2d(8)),
    "no scale": lambda: small(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8, affine=False), nn.ReLU()),
}


def pair(network: Callable[[], nn.Module]) -> list[nn.Module]:
    """Two sources in float64."""
    return [seeded(network, seed).double() for seed in range(2)]


def deployed(model: nn.Module) -> nn.Module:
    """Norms behind convolutions as torch folds them, those that it leaves as here."""
    model = fuse(model)
    layers = {name: layer for name, layer in model.named_children() if name.isdigit()}
    for name, layer in layers.items():
        behind = str(int(name) + 1)
        norm = layers.get(behind)
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            instead = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_transposed
            model.set_submodule(name, instead(layer, norm))
            model.set_submodule(behind, nn.Identity())
    return model.eval()


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_deployed_source_merges_with_one_that_is_not(name: str, which: int) -> None:
    """At full width exactly; the report says what was done, and the sources stay as they were."""
    models = pair(NETWORKS[name])
    wanted = [t for model in models for t in outputs(model, (IMAGES,))]
    models[which] = deployed(models[which])
    before = [clone(model) for model in models]
    result = pf.merge(models, IMAGES, width=2.0, progress=False)
    assert worst(outputs(result.model, (IMAGES,)), wanted) < EXACT
    assert any("batch norms" in warning for warning in result.report.warnings)
    for model, kept in zip(models, before, strict=True):
        assert all(torch.equal(kept[key], value) for key, value in model.state_dict().items())
    assert any(isinstance(m, nn.BatchNorm2d) for m in models[1 - which].modules())


@pytest.mark.parametrize("name", ["in a row", "residual"])
def test_it_is_the_merge_of_both_deployed(name: str) -> None:
    """Below full width, too."""
    models = pair(NETWORKS[name])
    both = [deployed(model) for model in pair(NETWORKS[name])]
    found = [
        outputs(pf.merge(own, IMAGES, flops=0.8, progress=False).model, (IMAGES,))
        for own in ([both[0], models[1]], both)
    ]
    assert worst(*found) < 1e-9


class Shared(nn.Module):
    """A convolution whose values a norm and something else read; one that is used twice."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.first, self.twice = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.again = nn.BatchNorm2d(8) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Neither norm can be folded."""
        y = self.first(x)
        y = y + self.norm(y)
        return self.again(self.twice(self.twice(y).relu()))


@pytest.mark.parametrize(
    "network",
    [
        Shared,
        lambda norm: small(nn.ReLU(), nn.BatchNorm2d(8) if norm else nn.Identity()),
        lambda norm: small(
            nn.ConvTranspose2d(8, 8, 2, groups=2), nn.BatchNorm2d(8) if norm else nn.Identity()
        ),
    ],
)
def test_norms_that_cannot_be_folded_are_a_difference(
    network: Callable[[bool], nn.Module],
) -> None:
    """They would change what is computed."""
    models = [seeded(partial(network, norm), 0).double() for norm in (True, False)]
    with pytest.raises(pf.IncompatibleModelsError):
        pf.merge(models, IMAGES, width=1.0, progress=False)


def test_other_differences_are_told_of_the_sources_as_they_are() -> None:
    """Nothing is folded where that makes no graph the other."""
    models = [seeded(two_convolutions, 0), seeded(lambda: two_convolutions()[:-3], 1)]
    programs = tuple(trace(model, (IMAGES[:2].float(),)) for model in models)
    assert all(a is b for a, b in zip(fold(programs), programs, strict=True))
    alike = programs[:1] * 2
    assert all(a is b for a, b in zip(fold(alike), alike, strict=True))
