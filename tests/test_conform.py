"""Sources whose layers differ in what values can make up for: biases, scales, options of norms."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import pleas_fx as pf
from passes.compare import compare
from passes.conform import conform
from passes.trace import trace
from tests.merging import clone, outputs, worst
from tests.networks import noise
from tests.randomise import seeded

EXACT = 1e-12  # relative, in float64
IMAGES = noise((24, 3, 9, 9))[0].double()

Layer = Callable[[], nn.Module]


def around(layer: nn.Module, channels: int = 8) -> nn.Module:
    """A layer of eight channels between convolutions."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        layer,
        nn.ReLU(),
        nn.Conv2d(channels, 6, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
    )


NORM = partial(nn.BatchNorm2d, 8)
PAIRS: dict[str, tuple[Layer, Layer]] = {
    "convolution's bias": (
        partial(nn.Conv2d, 8, 8, 3),
        partial(nn.Conv2d, 8, 8, 3, bias=False),
    ),
    "depthwise convolution's bias": (
        partial(nn.Conv2d, 8, 8, 3, groups=8),
        partial(nn.Conv2d, 8, 8, 3, groups=8, bias=False),
    ),
    "transposed convolution's bias": (
        partial(nn.ConvTranspose2d, 8, 8, 2, 2),
        partial(nn.ConvTranspose2d, 8, 8, 2, 2, bias=False),
    ),
    "momentum": (NORM, partial(NORM, momentum=None)),
    "what is added to a variance": (NORM, partial(NORM, eps=0.1)),
    "scale of a batch norm": (NORM, partial(NORM, affine=False)),
    "scale, and what is added": (NORM, partial(NORM, affine=False, eps=0.1)),
    "what is added, no scales": (
        partial(NORM, affine=False),
        partial(NORM, affine=False, eps=0.1),
    ),
    "scale of a group norm": (
        partial(nn.GroupNorm, 2, 8),
        partial(nn.GroupNorm, 2, 8, affine=False),
    ),
    "scale of an instance norm": (
        partial(nn.InstanceNorm2d, 8, affine=True),
        partial(nn.InstanceNorm2d, 8, momentum=0.3),
    ),
    "bias of a layer norm": (
        partial(nn.LayerNorm, (8, 9, 9)),
        partial(nn.LayerNorm, (8, 9, 9), bias=False),
    ),
    "scale of a layer norm": (
        partial(nn.LayerNorm, (8, 9, 9)),
        partial(nn.LayerNorm, (8, 9, 9), elementwise_affine=False),
    ),
}


def pair(layers: tuple[Layer, Layer], turned: bool) -> list[nn.Module]:
    """Two networks in float64, with random norms, that have them in their middle."""
    made = [seeded(lambda layer=layer: around(layer()), k) for k, layer in enumerate(layers)]
    return [model.double() for model in (reversed(made) if turned else made)]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("name", PAIRS)
def test_what_values_make_up_for_is_no_difference(name: str, turned: bool) -> None:
    """At full width both outputs are exact; below it they merge; the sources stay as they were."""
    models = pair(PAIRS[name], turned)
    before = [clone(model) for model in models]
    options = [(str(model), [m.momentum for m in norms_of(model)]) for model in models]
    whole = pf.merge(models, IMAGES, width=2.0, progress=False, synthetic=0)
    wanted = [t for model in models for t in outputs(model, (IMAGES,))]
    assert worst(outputs(whole.model, (IMAGES,)), wanted) < EXACT
    if turned:
        pf.merge(models, IMAGES, width=0.7, progress=False, synthetic=0)
    for model, kept, known in zip(models, before, options, strict=True):
        assert all(torch.equal(kept[key], value) for key, value in model.state_dict().items())
        assert (str(model), [m.momentum for m in norms_of(model)]) == known


def norms_of(model: nn.Module) -> list[nn.BatchNorm2d]:
    """Those with a momentum."""
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.mark.parametrize("name", PAIRS)
def test_layers_are_alike_then_and_programs_compute_the_same(name: str) -> None:
    """Control: as they were traced, they are refused."""
    models = pair(PAIRS[name], turned=False)
    programs = tuple(trace(model, (IMAGES[:2],)) for model in models)
    with pytest.raises(pf.IncompatibleModelsError):
        compare(programs, same_outputs=True)
    even = conform(programs)
    compare(even, same_outputs=True)
    for program, model in zip(even, models, strict=True):
        assert worst(outputs(program.module, (IMAGES,)), outputs(model, (IMAGES,))) < EXACT


def test_a_network_and_itself_written_otherwise_are_one() -> None:
    """Every channel is merged at width 1, and the function is the source's."""
    one = seeded(lambda: around(nn.BatchNorm2d(8)), 0).double()
    two = copy.deepcopy(one)
    norm = two.get_submodule("1")
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        wide = norm.running_var + 1e-3
        norm.weight *= (wide / (norm.running_var + norm.eps)).sqrt()
    norm.eps = 1e-3
    result = pf.merge([one, two], IMAGES, width=1.0, heads="shared", progress=False, synthetic=0)
    assert all(len(group.merged) == group.slots for group in result.plan.groups)
    assert worst(outputs(result.model, (IMAGES,)), outputs(one, (IMAGES,))) < 1e-6


def test_other_numbers_of_classes_have_biases_of_their_own_length() -> None:
    """A last layer without a bias gets one for its own classes."""
    models = [seeded(lambda: around(NORM()), k).double() for k in range(2)]
    models[1][-1] = nn.Linear(6, 3, bias=False).double()  # type: ignore[index]
    result = pf.merge(models, IMAGES, width=2.0, progress=False, synthetic=0)
    wanted = [t for model in models for t in outputs(model, (IMAGES,))]
    assert worst(outputs(result.model, (IMAGES,)), wanted) < EXACT


class Recurrent(nn.Module):
    """Rows of an image, one after the other."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.states = nn.LSTM(9, 9, bias=bias, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """What it says of them."""
        batch, channels, height, width = x.shape
        found = self.states(x.reshape(batch * channels, height, width))[0]
        return found.reshape(batch, channels, height, width)


@pytest.mark.parametrize(
    ("one", "two", "named"),
    [
        (nn.LeakyReLU(), nn.LeakyReLU(0.2), "negative_slope.*0.01.* against .*0.2"),
        (nn.GroupNorm(2, 8), nn.GroupNorm(2, 8, eps=0.1), "eps is 1e-05 against 0.1"),
        (nn.GroupNorm(2, 8), nn.GroupNorm(4, 8), "num_groups is 2 against 4"),
        (NORM(), NORM(track_running_stats=False), "running_mean"),
        (nn.BatchNorm2d(8), nn.InstanceNorm2d(8), "BatchNorm2d against InstanceNorm2d"),
        (Recurrent(), Recurrent(bias=False), "only one has a bias"),
    ],
)
def test_what_values_cannot_make_up_for_is_refused_by_name(
    one: nn.Module, two: nn.Module, named: str
) -> None:
    """Nothing is approximated in silence."""
    models = [around(layer).double().eval() for layer in (one, two)]
    with pytest.raises(pf.IncompatibleModelsError, match=named):
        pf.merge(models, IMAGES, width=1.0, progress=False)
