"""Norms that somebody wrote out are norms: what they compute decides, not what they are called."""

from __future__ import annotations

import pytest
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.ops import FrozenBatchNorm2d

import pleas_fx as pf
from passes.trace import trace
from tests.computed_networks import FrozenNorm
from tests.merging import outputs, worst
from tests.networks import noise
from tests.randomise import seeded

IMAGES = noise((16, 3, 16, 16))[0]


class Rectified(FrozenNorm):
    """The same tensors, another map."""

    def forward(self, x: Tensor) -> Tensor:
        """Cut off."""
        return super().forward(x).relu()


class Uncentred(FrozenNorm):
    """The mean isn't used."""

    def forward(self, x: Tensor) -> Tensor:
        """Scale and bias only."""
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        return x * scale[:, None, None] + self.bias[:, None, None]


def resnet(norm: type[nn.Module], seed: int) -> nn.Module:
    """A narrow ResNet with such norms, but always with the same values."""
    plain = seeded(lambda: ResNet(BasicBlock, [1, 1, 1, 1], num_classes=4), seed)
    state = plain.state_dict()
    model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=4, norm_layer=norm).eval()
    model.load_state_dict({k: v for k, v in state.items() if k in model.state_dict()})
    return model


def norms(model: nn.Module) -> int:
    """Batch norms in the graph of a model."""
    return sum(isinstance(m, nn.BatchNorm2d) for m in trace(model, (IMAGES,)).module.modules())


@pytest.mark.parametrize("kind", [FrozenBatchNorm2d, FrozenNorm])
def test_frozen_norms_merge_like_the_norms_they_were(kind: type[nn.Module]) -> None:
    """The same network, weight for weight, below and above the size of one source."""
    for size in (0.5, 1.2):
        found = []
        for norm in (nn.BatchNorm2d, kind):
            models = [resnet(norm, seed) for seed in range(2)]
            result = pf.merge(models, IMAGES, flops=size, progress=False, synthetic=0, trials=0)
            found.append(outputs(result.model, (IMAGES,)))
        assert worst(*found) < 1e-5


@pytest.mark.parametrize(("kind", "wanted"), [(FrozenNorm, 12), (Rectified, 0), (Uncentred, 0)])
def test_what_it_computes_decides(kind: type[nn.Module], wanted: int) -> None:
    """The controls hold the same tensors, and are exact side by side all the same."""
    models = [resnet(kind, seed) for seed in range(2)]
    assert norms(models[0]) == wanted
    result = pf.merge(models, IMAGES, width=2.0, progress=False)
    alone = [t for model in models for t in outputs(model, (IMAGES,))]
    assert worst(outputs(result.model, (IMAGES,)), alone) < 1e-5


def test_frozen_norms_of_sequences_are_theirs() -> None:
    """Behind convolutions over one dim; what is written out for maps alone stays what it is."""
    sequences = noise((16, 3, 20))[0]

    class Frozen(FrozenNorm):
        def forward(self, x: Tensor) -> Tensor:
            """Of whatever has channels second."""
            scale = self.weight * (self.running_var + 1e-5).rsqrt()
            shift = self.bias - self.running_mean * scale
            shape = (-1, *[1] * (x.dim() - 2))
            return x * scale.reshape(shape) + shift.reshape(shape)

    def network() -> nn.Module:
        layers = nn.Conv1d(3, 8, 3), Frozen(8), nn.ReLU(), nn.Conv1d(8, 4, 3)
        return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten())

    models = [seeded(network, seed) for seed in range(2)]
    graph = trace(models[0], (sequences[:2],)).module
    assert sum(isinstance(m, nn.BatchNorm1d) for m in graph.modules()) == 1
    result = pf.merge(models, sequences, width=2.0, progress=False)
    alone = [t for model in models for t in outputs(model, (sequences,))]
    assert worst(outputs(result.model, (sequences,)), alone) < 1e-5


def test_the_model_keeps_its_own() -> None:
    """What is replaced is a copy's."""
    model = resnet(FrozenBatchNorm2d, 0)
    trace(model, (IMAGES,))
    assert isinstance(model.get_submodule("bn1"), FrozenBatchNorm2d)
    assert not list(model.get_submodule("bn1").parameters())
