"""Sources whose layers have other names: one wrapped, one part of a larger module, one pruned."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torchvision.ops import FrozenBatchNorm2d

import pleas_fx as pf
from passes.align import align
from passes.compare import compare
from passes.trace import trace
from tests.merging import outputs, worst
from tests.networks import noise
from tests.randomise import seeded
from tests.small_networks import two_convolutions as network

IMAGES = noise((24, 3, 9, 9))[0]


class Inside(nn.Module):
    """The network as an attribute, as training frameworks have it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.net = inner

    def forward(self, x: Tensor) -> Tensor:
        """What the network says."""
        return self.net(x)


def with_dropout(model: nn.Module) -> nn.Module:
    """Names behind it are shifted."""
    layers = list(model.children())
    return nn.Sequential(*layers[:6], nn.Dropout(0.5), *layers[6:]).eval()


def pruned(model: nn.Module) -> nn.Module:
    """Nothing cut off: the same weights, computed by a hook."""
    prune.identity(model.get_submodule("3"), "weight")
    return model


def frozen(model: nn.Module) -> nn.Module:
    """One norm as detectors have it."""
    norm = FrozenBatchNorm2d(8)
    norm.load_state_dict(model.get_submodule("1").state_dict())
    model.set_submodule("1", norm)
    return model


CHANGES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "inside": lambda model: Inside(model).eval(),
    "in a row": lambda model: nn.Sequential(model).eval(),
    "data parallel": nn.DataParallel,
    "averaged": torch.optim.swa_utils.AveragedModel,
    "with dropout": with_dropout,
    "pruned": pruned,
    "norms of several processes": nn.SyncBatchNorm.convert_sync_batchnorm,
    "frozen norm": frozen,
}


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("change", CHANGES)
def test_other_names_are_the_same_graph(change: str, which: int) -> None:
    """The merged network is that of the bare sources, weight for weight."""
    bare = [seeded(network, seed) for seed in range(2)]
    models = [copy.deepcopy(model) for model in bare]
    models[which] = CHANGES[change](models[which])
    found = []
    for sources in (bare, models):
        result = pf.merge(sources, IMAGES, flops=0.7, progress=False, synthetic=0)
        found.append(outputs(result.model, (IMAGES,)))
    assert worst(*found) < 1e-5
    wanted = [t for model in models for t in outputs(model, (IMAGES,))]
    assert worst(wanted, [t for model in bare for t in outputs(model, (IMAGES,))]) < 1e-6


class Twice(nn.Module):
    """One layer in two places, or two layers."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 3, 1)
        self.two = self.one if shared else nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """One after the other."""
        return self.two(self.one(x).relu())


class Boxes(nn.Module):
    """The number of outputs is written into the code."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 2 * (classes + 4), 1)
        self.each = classes + 4

    def forward(self, x: Tensor) -> Tensor:
        """Two boxes a place."""
        return self.last(self.conv(x).relu()).view(-1, 2, self.each, 49).sigmoid()


def test_other_names_and_other_numbers_of_classes_go_together() -> None:
    """The sizes in a source's code stay its own."""
    models = [seeded(partial(Boxes, 3), 0), Inside(seeded(partial(Boxes, 5), 1)).eval()]
    result = pf.merge(models, IMAGES, width=2.0, progress=False)
    wanted = [t for model in models for t in outputs(model, (IMAGES,))]
    assert worst(outputs(result.model, (IMAGES,)), wanted) < 1e-5


def test_one_layer_used_twice_is_not_two() -> None:
    """Untying is left to the rewrite, which does it to all sources."""
    models = [seeded(partial(Twice, shared), 0) for shared in (True, False)]
    with pytest.raises(pf.IncompatibleModelsError, match="twice"):
        pf.merge(models, IMAGES, width=1.0, progress=False)


def test_parameters_are_the_sources_own() -> None:
    """The program under other names computes what its source does, with its very tensors."""
    first, other = seeded(network, 0), CHANGES["inside"](seeded(network, 1))
    programs = tuple(trace(model, (IMAGES[:2],)) for model in (first, other))
    compare(programs, same_outputs=True)
    named = align(programs)[1]
    assert worst(outputs(named.module, (IMAGES,)), outputs(other, (IMAGES,))) == 0
    assert [n.target for n in named.module.graph.nodes] == [
        n.target for n in programs[0].module.graph.nodes
    ]
    own = {p.data_ptr() for p in other.parameters()}
    assert {p.data_ptr() for p in named.module.parameters()} == own
