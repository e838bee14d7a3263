"""Tracing: which modules are entered, and what their code may do."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch
from einops import rearrange, reduce
from einops._backends import TorchBackend
from einops.layers.torch import Rearrange
from torch import Tensor, nn

import pleas_fx as pf
from passes._einops import accept_proxies
from passes.groups import Groups
from passes.lower import lower
from passes.trace import trace
from pleas_fx.ir import Program
from pleas_fx.rules.reasons import COMBINED
from tests.merging import outputs, worst
from tests.networks import noise
from tests.randomise import seeded

INPUTS = noise((2, 3, 9, 9))


class Steps(nn.Module):
    """A buffer that is repeated as often as there are inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.linspace(0.5, 1.5, 9))

    def forward(self, x: Tensor) -> Tensor:
        """Scale the columns."""
        return x * self.steps[None, None, None].expand(x.shape[0], -1, -1, -1)


class Scales(nn.Module):
    """A buffer with a number for each channel."""

    def __init__(self, persistent: bool) -> None:
        super().__init__()
        self.register_buffer("scales", torch.tensor([1.0, -2.0, 3.0, 4.0]), persistent=persistent)

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels."""
        return x * self.scales.view(1, 4, 1, 1).expand(x.shape[0], -1, -1, -1)


class Masked(nn.Module):
    """Features, and no mask."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """What is asked for is there for some sizes only."""
        return x.relu(), None if len(x.shape) == 4 else x


class Asking(nn.Module):
    """Goes on with a mask only where there is one."""

    def __init__(self) -> None:
        super().__init__()
        self.masked, self.last = Masked(), nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Unpacks, and asks."""
        x, mask = self.masked(x)
        return self.last(x if mask is None else x * mask.any())


class Sized(nn.Module):
    """Control flow over sizes."""

    def forward(self, x: Tensor) -> Tensor:
        """Cut off what is odd."""
        return x[..., 1:] if x.shape[-1] % 2 else x


def targets(program: Program) -> list[str]:
    """The modules that a program calls, in order."""
    graph = program.module.graph
    return [str(node.target) for node in graph.find_nodes(op="call_module")]


def test_buffers_can_be_given_sizes_of_the_input() -> None:
    """Followed, not left alone; the size isn't written into the graph."""
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 1), Steps(), nn.Conv2d(4, 2, 1)), 0)
    program = trace(model, INPUTS)
    assert targets(program) == ["0", "2"]
    more = noise((5, 3, 9, 9))
    assert worst(outputs(program.module, more), outputs(model, more)) == 0.0


@pytest.mark.parametrize("prepare", [lambda program: program, lower])
@pytest.mark.parametrize("persistent", [True, False])
def test_buffers_that_state_dict_leaves_out_are_constants(
    prepare: Callable[[Program], Program], persistent: bool
) -> None:
    """What a constructor makes is alike in all sources and holds what it meets in place."""
    parts = nn.Conv2d(3, 4, 1), Scales(persistent), nn.Conv2d(4, 2, 1)
    model = seeded(lambda: nn.Sequential(*parts), 0)
    symmetry = Groups().run(prepare(trace(model, INPUTS)))
    labelled = {axis.key for axis in symmetry.layout.axes} - {*dict(model.named_parameters())}
    assert len(labelled) == persistent
    assert [g.size for g in symmetry.groups] == [4] * persistent
    if not persistent:
        assert symmetry.frozen[0].reason == COMBINED


def test_a_part_of_a_result_may_be_none() -> None:
    """Of a module that isn't entered: whoever asks is told."""
    model = seeded(Asking, 0)
    program = trace(model, INPUTS, leaves=["masked"])
    assert targets(program) == ["masked", "last"]
    assert worst(outputs(program.module, INPUTS), outputs(model, INPUTS)) == 0.0


def test_leaves_are_not_entered() -> None:
    """Symbolically, with known sizes, and by what lowering does afterwards."""
    for inner in (nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), nn.Sequential(Sized())):
        for outer in (nn.ReLU(), Sized()):
            model = nn.Sequential(inner, outer).eval()
            program = lower(trace(model, INPUTS, leaves=["0"]))
            assert targets(program)[0] == "0"
            assert not [t for t in targets(program) if t.startswith("0.")]
            assert worst(outputs(program.module, INPUTS), outputs(model, INPUTS)) == 0.0


class Anchored(nn.Module):
    """Anchors are kept for the size they were made for, and inputs beside the first are ignored
    (YOLOv8).
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 1)
        self.shape: torch.Size | None = None
        self.anchors = torch.empty(0)

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        x = self.head(self.stem(x).relu())
        if self.shape != x.shape:
            self.anchors = torch.arange(x.shape[-1]).type_as(x) + 0.5
            self.shape = x.shape
        return x.view(x.shape[0], 2, 2, -1).softmax(2).sum(1) + self.anchors.sum()


@pytest.mark.parametrize("before", [1, 2, 4])
def test_what_a_network_remembers_of_sizes_binds_no_batch(before: int) -> None:
    """However many examples it has seen before tracing; what it takes by ``*args`` is nothing."""
    model = seeded(Anchored, 0)
    outputs(model, noise((before, 3, 8, 8)))
    program = trace(model, noise((2, 3, 8, 8)))
    more = noise((5, 3, 8, 8))
    assert worst(outputs(program.module, more), outputs(model, more)) == 0


class Several(nn.Module):
    """Takes any number of images."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 1)

    def forward(self, first: Tensor, /, *others: Tensor) -> Tensor:
        return self.head(sum((self.stem(x) for x in others), self.stem(first)))


@pytest.mark.parametrize("count", [2, 3])
def test_inputs_beside_the_first_may_have_no_names(count: int) -> None:
    """Each is an input of the graph."""
    model, inputs = seeded(Several, 0), noise(*[(2, 3, 8, 8)] * count)
    program = trace(model, inputs)
    assert [n.op for n in program.module.graph.nodes].count("placeholder") == count
    assert worst(outputs(program.module, inputs), outputs(model, inputs)) == 0


class Keeping(nn.Module):
    """Biases are computed once in eval mode, and again after training (LeViT)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 1)
        self.table = nn.Parameter(torch.empty(6, 1, 1))
        self.kept: Tensor | None = None

    def train(self, mode: bool = True) -> Keeping:
        self.kept = None if mode else self.kept
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        if self.kept is None:
            self.kept = self.table * 2
        return self.last((self.first(x) + self.kept).relu())


@pytest.mark.parametrize("gradients", [False, True])
def test_what_a_network_keeps_until_it_is_trained_is_computed_again(gradients: bool) -> None:
    """Also by a permuted copy; and the model's own modes are left as they are."""
    model = seeded(Keeping, 0)
    with torch.set_grad_enabled(gradients):
        model(INPUTS[0])
    symmetry = pf.permutation_groups(model, INPUTS)
    assert "table" in {axis.key for group in symmetry.groups for axis in group.axes}
    copy = symmetry.apply(model, symmetry.random(0))
    assert worst(outputs(copy, INPUTS), outputs(model, INPUTS)) < 1e-6
    result = pf.merge([model, copy], INPUTS[0].repeat(4, 1, 1, 1), width=1.0, progress=False)
    assert worst(outputs(result.model, INPUTS)[:1], outputs(model, INPUTS)) < 1e-5
    assert model.kept is not None
    assert not model.training


class Rearranged(nn.Module):
    """Attention whose layouts are written in einops."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3), nn.LayerNorm(16)
        self.mixed, self.out, self.head = nn.Linear(16, 36), nn.Linear(12, 16), nn.Linear(16, 4)
        self.last = Rearrange("b n c -> b c n")

    def forward(self, x: Tensor) -> Tensor:
        x = rearrange(self.stem(x), "b c h w -> b (h w) c")
        query, key, value = rearrange(
            self.mixed(self.norm(x)), "b n (k h d) -> k b h n d", k=3, h=4
        )
        read = (query @ key.transpose(-1, -2)).softmax(-1) @ value
        x = self.last(x + self.out(rearrange(read, "b h n d -> b n (h d)")))
        return self.head(reduce(x, "b c n -> b c", "mean"))


def test_einops_is_followed() -> None:
    """Into operators of torch, for any batch; the network is analysed and merged like others."""
    a, b = (seeded(Rearranged, seed).double() for seed in (0, 1))
    inputs = (INPUTS[0].double(),)
    program = trace(a, inputs)
    more = (torch.cat(inputs * 2),)
    assert worst(outputs(program.module, more), outputs(a, more)) == 0.0
    symmetry = pf.permutation_groups(a, inputs)
    assert symmetry.certificate.passed
    frozen = {f"{f.axis.key}.{f.axis.dim}" for f in symmetry.frozen}
    assert frozen == {"stem.weight.1", "head.weight.0", "head.bias.0"}
    result = pf.merge([a, b], more[0], width=2.0, progress=False)
    assert worst(outputs(result.model, inputs), outputs(a, inputs) + outputs(b, inputs)) < 1e-9


def test_einops_finds_proxies_whenever_it_looks_for_them() -> None:
    """Not only until unused classes are collected."""
    accept_proxies()
    gc.collect()
    assert "torch.fx" in {kind.framework_name for kind in TorchBackend.__subclasses__()}


class Sliced(nn.Module):
    """Parts of a Sequential, and an activation that is made on every call."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[2:](nn.ReLU()(self.layers[:2](x)))


def test_modules_that_are_made_on_the_way_are_entered() -> None:
    """They aren't installed anywhere; the layers in them are."""
    model = seeded(Sliced, 0)
    program = trace(model, INPUTS)
    layers = [str(n.target) for n in program.module.graph.nodes if n.op == "call_module"]
    assert layers == ["layers.0", "layers.1", "layers.2"]
    assert worst(outputs(program.module, INPUTS), outputs(model, INPUTS)) == 0.0
    assert pf.permutation_groups(model, INPUTS).groups


class Remembering(nn.Module):
    """Asks its own buffer, and keeps the size of what it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)
        self.register_buffer("scale", torch.ones(()))
        self.shape: torch.Size | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.shape != x.shape:
            self.shape = x.shape
        x = self.layer(x)
        return x.relu() if self.scale > 0 else x


def test_nothing_of_an_attempt_is_seen_by_the_next() -> None:
    """Buffers are nodes at first, which decide nothing; then they are known."""
    model = seeded(Remembering, 0)
    program = trace(model, INPUTS)
    assert worst(outputs(program.module, INPUTS), outputs(model, INPUTS)) == 0.0
    assert all(n.op != "get_attr" for n in program.module.graph.nodes)
