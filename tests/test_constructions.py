"""Ways to write a network that compilers trip over: each keeps every oracle of this one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import pleas_fx as pf
from tests.merging import doubled, outputs, worst
from tests.networks import noise
from tests.randomise import seeded
from tests.small_networks import conv_bn, conv_bn_relu, pooled

EXACT = 1e-9
INPUTS = noise((8, 3, 8, 8))


class Built(nn.Module):
    """A network whose forward is a function of itself and its inputs."""

    def __init__(self, function: Callable[..., Any], **members: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, member in members.items():
            self.add_module(name, member)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self, *inputs)


class Unary(Built):
    """The same with one input, which symbolic tracing can name."""

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def tied_parameters() -> nn.Module:
    """Two convolutions that own one weight, as language models tie their ends."""
    net = Unary(
        lambda s, x: s.head(F.relu(s.b(F.relu(s.a(s.stem(x)))))),
        stem=conv_bn_relu(3, 6),
        a=nn.Conv2d(6, 6, 3, padding=1),
        b=nn.Conv2d(6, 6, 3, padding=1),
        head=nn.Conv2d(6, 4, 1),
    )
    net.b.weight = net.a.weight
    return net


def tied_modules() -> nn.Module:
    """One module under two names, used under both."""
    shared = conv_bn(6, 6)
    return Unary(
        lambda s, x: s.head(F.relu(s.two(F.relu(s.one(s.stem(x)))))),
        stem=conv_bn_relu(3, 6),
        one=shared,
        two=shared,
        head=nn.Conv2d(6, 4, 1),
    )


def used_twice() -> nn.Module:
    """A head on two scales, with a norm of its own on each."""

    def forward(s: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        x = s.stem(x)
        return s.head(s.small(s.tower(x))), s.head(s.large(s.tower(F.max_pool2d(x, 2))))

    return Unary(
        forward,
        stem=conv_bn_relu(3, 6),
        tower=nn.Conv2d(6, 7, 3, padding=1),
        small=nn.BatchNorm2d(7),
        large=nn.BatchNorm2d(7),
        head=nn.Conv2d(7, 4, 1),
    )


def named_outputs() -> nn.Module:
    """Nested dictionaries and tuples of outputs."""

    def forward(s: Any, x: Tensor) -> dict[str, Any]:
        low = s.stem(x)
        high = s.body(low)
        return {"logits": s.head(high), "levels": (s.side(low), {"pooled": s.last(pooled(high))})}

    return Unary(
        forward,
        stem=conv_bn_relu(3, 6),
        body=conv_bn_relu(6, 9),
        head=nn.Conv2d(9, 4, 1),
        side=nn.Conv2d(6, 2, 1),
        last=nn.Linear(9, 5),
    )


def in_place() -> nn.Module:
    """Operators that overwrite their input, as modules, functions, methods and statements."""

    def forward(s: Any, x: Tensor) -> Tensor:
        y = s.stem(x)
        z = F.relu(s.body(y), inplace=True)
        z += y
        z.mul_(0.5)
        torch.clamp_(z, max=3.0)
        return s.head(s.act(s.last(z).sub_(0.1)))

    return Unary(
        forward,
        stem=conv_bn_relu(3, 6),
        body=conv_bn(6, 6),
        last=conv_bn(6, 9),
        act=nn.SiLU(inplace=True),
        head=nn.Conv2d(9, 4, 1),
    )


def functional() -> nn.Module:
    """Layers as calls of functions on the parameters of modules that are never called."""

    def forward(s: Any, x: Tensor) -> Tensor:
        x = F.conv2d(x, s.a.weight, s.a.bias, padding=1)
        x = F.batch_norm(x, s.n.running_mean, s.n.running_var, s.n.weight, s.n.bias)
        return F.linear(pooled(F.relu(x)), s.b.weight * 2.0, s.b.bias)

    return Unary(forward, a=nn.Conv2d(3, 6, 3), n=nn.BatchNorm2d(6), b=nn.Linear(6, 4))


def reparametrised() -> nn.Module:
    """Weight normalisation: the weight is computed from a direction and a length on every call."""
    conv = parametrizations.weight_norm(nn.Conv2d(6, 7, 3, padding=1))
    return nn.Sequential(conv_bn_relu(3, 6), conv, nn.ReLU(), nn.Conv2d(7, 4, 1))


def several_inputs() -> nn.Module:
    """An image, another of half the size and a vector, joined at different depths."""

    def forward(s: Any, image: Tensor, small: Tensor, vector: Tensor) -> Tensor:
        x = F.max_pool2d(s.a(image), 2) + s.b(small)
        return s.head(torch.cat([pooled(x), s.c(vector)], 1))

    class Three(Built):
        def forward(self, image: Tensor, small: Tensor, vector: Tensor) -> Any:
            return self.function(self, image, small, vector)

    return Three(
        forward,
        a=conv_bn_relu(3, 6),
        b=conv_bn_relu(2, 6),
        c=nn.Linear(4, 5),
        head=nn.Linear(11, 4),
    )


BUILDS = [
    tied_parameters, tied_modules, used_twice, named_outputs, in_place, functional, reparametrised,
    several_inputs,
]  # fmt: skip

every = pytest.mark.parametrize("build", BUILDS, ids=lambda build: build.__name__)


def inputs_of(build: Callable[[], nn.Module]) -> tuple[Tensor, ...]:
    """Float64 examples."""
    three = noise((8, 3, 8, 8), (8, 2, 4, 4), (8, 4))
    return doubled(three if build is several_inputs else INPUTS)


@every
def test_groups_are_certified_and_move(build: Callable[[], nn.Module]) -> None:
    """Something moves, and no group has to be taken back."""
    certificate = pf.permutation_groups(seeded(build, 0).double(), inputs_of(build)).certificate
    assert certificate.passed
    assert not certificate.culprits
    assert certificate.coverage > 0.3


@every
def test_a_permuted_copy_merges_into_the_original(build: Callable[[], nn.Module]) -> None:
    """At width 1 all slots are merged and nothing changes."""
    model, inputs = seeded(build, 0).double(), inputs_of(build)
    symmetry = pf.permutation_groups(model, inputs)
    planted = symmetry.apply(model, symmetry.random(3))
    assert worst(outputs(planted, inputs), outputs(model, inputs)) < EXACT
    result = pf.merge([model, planted], [inputs], width=1.0, heads="shared", progress=False)
    assert worst(outputs(result.model, inputs), outputs(model, inputs)) < EXACT


@every
def test_nothing_merged_is_both_networks(build: Callable[[], nn.Module]) -> None:
    """At width 2 every output of both is there, in order."""
    a, b = (seeded(build, seed).double() for seed in (0, 1))
    inputs = inputs_of(build)
    result = pf.merge([a, b], [inputs], width=2.0, progress=False)
    assert worst(outputs(result.model, inputs), outputs(a, inputs) + outputs(b, inputs)) < EXACT
