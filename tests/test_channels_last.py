"""Calibration images are put in the order that convolutions run faster in, where that's safe."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import pleas_fx as pf
from passes.lower import lower
from passes.trace import trace
from pleas_fx.channels_last import ChannelsLast, arranged
from tests.merging import NAMES, outputs, worst
from tests.networks import NETWORKS, noise
from tests.randomise import seeded

IMAGES = noise((6, 3, 8, 8))[0]
BATCHES = ((IMAGES[:4],), (IMAGES[4:],))


class Opaque(nn.Module):
    """A leaf of the trace, since it looks at values; ``read`` reads strides."""

    def forward(self, x: Tensor) -> Tensor:
        return self.read(x) if x.mean() > -100 else x

    def read(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class Viewing(Opaque):
    """Refuses memory in another order."""

    def read(self, x: Tensor) -> Tensor:
        return x.view(len(x), -1)


class Striding(Opaque):
    """Computes something else from it."""

    def read(self, x: Tensor) -> Tensor:
        return x.as_strided(x.shape, (x[0].numel(), x[0, 0].numel(), x.shape[-1], 1)) * 1.0


def around(leaf: nn.Module) -> nn.Module:
    """A small network with a leaf in the middle."""
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), leaf, nn.Flatten(1), nn.Linear(256, 5))


@pytest.mark.parametrize("name", NAMES)
def test_networks_compute_the_same_in_either_order(name: str) -> None:
    """Nothing in the zoo reads strides once views are reshapes."""
    network = NETWORKS[name]
    inputs = network.inputs()
    program = lower(trace(network.make(0), inputs))
    batches = (network.batch(4, seed=7),)
    found = arranged([program], batches)
    assert isinstance(found, ChannelsLast) == any(t.dim() in (4, 5) for t in inputs)
    for given, other in zip(batches, found, strict=True):
        assert worst(outputs(program.module, other), outputs(program.module, given)) < 1e-4


def test_only_the_order_in_memory_changes() -> None:
    """Same values, nothing written to what was given, slices included."""
    found = arranged([lower(trace(around(nn.ReLU()), BATCHES[0]))], BATCHES)
    for batches in (found, found[0:2]):
        assert len(batches) == 2
        for (given,), (other,) in zip(BATCHES, batches, strict=True):
            assert other.equal(given)
            assert other.is_contiguous(memory_format=torch.channels_last)
            assert given.is_contiguous()


@pytest.mark.parametrize("leaf", [Viewing, Striding], ids=["refuses", "differs"])
def test_networks_that_read_strides_keep_their_order(leaf: type[nn.Module]) -> None:
    """Whether the code inside a leaf then fails or computes something else."""
    models = [seeded(lambda: around(leaf()), seed) for seed in (0, 1)]
    program = lower(trace(models[0], BATCHES[0]))
    assert any(n.op == "call_module" and n.target == "1" for n in program.module.graph.nodes)
    assert arranged([program], BATCHES) is BATCHES
    found = outputs(pf.merge(models, IMAGES, width=2.0, progress=False).model, (IMAGES,))
    expected = [t for model in models for t in outputs(model, (IMAGES,))]
    assert worst(found, expected) < 1e-4


@pytest.mark.parametrize("batches", [(), ((torch.zeros(2, 5),),), ((IMAGES.double(),),)])
def test_what_gains_nothing_stays(batches: tuple[tuple[Tensor, ...], ...]) -> None:
    """No images, or numbers that processors have no other kernels for; nothing is run for it."""
    assert arranged([], batches) is batches


def test_views_become_reshapes_but_casts_stay() -> None:
    """``view`` refuses memory that ``reshape`` copies; ``view(dtype)`` is no reshape."""

    class Viewed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(torch.int32).view(torch.float32).view(x.size(0), -1)

    program = lower(trace(Viewed(), BATCHES[0]))
    called = [n.target for n in program.module.graph.nodes if n.op == "call_method"]
    assert [name for name in called if name != "size"] == ["view", "view", "reshape"]
