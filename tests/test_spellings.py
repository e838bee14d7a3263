"""Sources whose code says the same thing in other words, as libraries do with one architecture."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pleas_fx as pf
from passes.compare import compare
from passes.lower import lower
from passes.reorder import reorder
from passes.respell import SPELLINGS, respell
from passes.trace import trace
from tests.merging import NAMES, clone, doubled, outputs, precise, worst
from tests.networks import NETWORKS as NETWORKS_OF_ALL
from tests.networks import noise
from tests.randomise import seeded
from tests.small_networks import NarrowResNet, two_convolutions

EXACT = 1e-12  # relative, in float64
IMAGES = noise((24, 3, 12, 12))[0].double()

Operator = Callable[[Tensor], Tensor]


class Between(nn.Module):
    """An operator between two convolutions, and a classifier."""

    def __init__(self, operator: Operator) -> None:
        super().__init__()
        self.one, self.operator = nn.Conv2d(3, 8, 3), operator
        self.two, self.last = nn.Conv2d(8, 6, 3), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Classes."""
        return self.last(self.two(self.operator(self.one(x))).relu().mean((2, 3)))


class Ending(nn.Module):
    """From a map to a row an example."""

    def __init__(self, operator: Operator, positions: int = 1) -> None:
        super().__init__()
        self.one, self.operator = nn.Conv2d(3, 8, 3), operator
        self.last = nn.Linear(8 * positions, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Classes."""
        return self.last(self.operator(self.one(x).relu()))


class Named(nn.Module):
    """Gives a layer its input by name."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        """What the layer says."""
        return self.layer(input=x)


ALIKE: dict[str, tuple[Operator, ...]] = {
    "relu": (nn.ReLU(), F.relu, torch.relu, lambda x: x.relu(), lambda x: F.relu(x, inplace=True)),
    "relu6": (
        nn.ReLU6(), F.relu6, partial(F.relu6, inplace=True), nn.Hardtanh(0, 6),
        lambda x: F.hardtanh(x, 0.0, 6.0),
    ),
    "hardtanh": (nn.Hardtanh(), F.hardtanh, lambda x: F.hardtanh(x, -1, max_val=1)),
    "silu": (nn.SiLU(), F.silu, lambda x: x * x.sigmoid(), lambda x: torch.sigmoid(x) * x),
    "gelu": (nn.GELU("tanh"), lambda x: F.gelu(x, approximate="tanh")),
    "mish": (nn.Mish(), F.mish),
    "selu": (nn.SELU(), F.selu, torch.selu),
    "hardswish": (nn.Hardswish(), F.hardswish, lambda x: x * F.hardsigmoid(x)),
    "hardsigmoid": (nn.Hardsigmoid(), F.hardsigmoid),
    "sigmoid": (nn.Sigmoid(), torch.sigmoid, F.sigmoid, lambda x: x.sigmoid()),
    "tanh": (nn.Tanh(), torch.tanh, lambda x: x.tanh()),
    "elu": (nn.ELU(0.5), lambda x: F.elu(x, 0.5), lambda x: F.elu(x, alpha=0.5)),
    "leaky relu": (nn.LeakyReLU(), F.leaky_relu, lambda x: F.leaky_relu(x, 0.01)),
    "softplus": (nn.Softplus(), F.softplus),
    "softmax": (nn.Softmax(3), lambda x: x.softmax(3), lambda x: F.softmax(x, dim=3)),
    "log softmax": (nn.LogSoftmax(3), lambda x: torch.log_softmax(x, 3)),
    "largest": (nn.MaxPool2d(2), nn.MaxPool2d((2, 2), 2), lambda x: F.max_pool2d(x, 2, stride=2)),
    "mean of few": (nn.AvgPool2d(2, 2), lambda x: F.avg_pool2d(x, (2, 2))),
    "pooled": (nn.AdaptiveAvgPool2d((5, 5)), lambda x: F.adaptive_avg_pool2d(x, 5)),
    "resized": (
        nn.Upsample(scale_factor=2), lambda x: F.interpolate(x, scale_factor=2),
        lambda x: F.interpolate(x, scale_factor=(2, 2), mode="nearest"),
    ),
    "permuted": (
        lambda x: x.permute(0, 2, 3, 1).tanh().permute((0, 3, 1, 2)),
        lambda x: torch.permute(torch.permute(x, [0, 2, 3, 1]).tanh(), (0, 3, 1, 2)),
    ),
    "turned": (lambda x: x.transpose(2, 3), lambda x: torch.transpose(x, 2, dim1=3)),
    "halves": (
        lambda x: torch.cat(x.chunk(2, 2)[::-1], 2),
        lambda x: torch.cat(torch.chunk(x, chunks=2, dim=2)[::-1], 2),
    ),
    "difference": (
        lambda x: (x - x.tanh()) / 2.0,
        lambda x: torch.div(torch.sub(x, x.tanh()), 2.0),
        lambda x: x.sub(x.tanh()).div(2.0),
    ),
    "by name": (Named(), lambda x: torch.tanh(input=x), nn.Tanh()),
    "gate": (lambda x: x * x.mean((2, 3), keepdim=True),
             lambda x: F.adaptive_avg_pool2d(x, 1) * x,
             lambda x: torch.mul(x, torch.mean(x, dim=[-2, -1], keepdim=True))),
    "sum": (lambda x: x + x.tanh(), lambda x: torch.add(x.tanh(), x), lambda x: x.tanh().add(x)),
    "joined": (lambda x: torch.cat([x, x.tanh()], 2), lambda x: torch.concat((x, x.tanh()), dim=2)),
}  # fmt: skip
ENDS: dict[str, tuple[Operator, ...]] = {
    "mean": (
        lambda x: x.mean((2, 3)),
        lambda x: torch.mean(x, [-1, -2]),
        lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1),
        nn.Sequential(nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten()),
        lambda x: x.mean((2, 3), keepdim=True).view(x.size(0), -1),
    ),
    "row": (
        nn.Flatten(),
        lambda x: torch.flatten(x, 1),
        lambda x: x.view(x.shape[0], -1),
        lambda x: x.reshape(-1, 800),
        lambda x: x.flatten(start_dim=1),
    ),
}
NETWORKS: dict[str, tuple[Callable[[Operator], nn.Module], tuple[Operator, ...]]] = {
    **{name: (Between, operators) for name, operators in ALIKE.items()},
    "mean": (Ending, ENDS["mean"]),
    "row": (partial(Ending, positions=100), ENDS["row"]),
}
PAIRS = [(name, k) for name, (_, own) in NETWORKS.items() for k in range(1, len(own))]


def pair(name: str, k: int) -> list[nn.Module]:
    """The first way of writing it, and another."""
    network, operators = NETWORKS[name]
    return [
        seeded(partial(network, operators[which]), seed).double()
        for seed, which in enumerate((0, k))
    ]


@pytest.mark.parametrize(("name", "k"), PAIRS)
def test_the_same_in_other_words_is_the_same_graph(name: str, k: int) -> None:
    """At full width the sources' outputs, exactly; they stay as they were."""
    models = pair(name, k)
    before = [clone(model) for model in models]
    whole = pf.merge(models, IMAGES, width=2.0, progress=False, synthetic=0)
    wanted = [t for model in models for t in outputs(model, (IMAGES,))]
    assert worst(outputs(whole.model, (IMAGES,)), wanted) < EXACT
    for model, kept in zip(models, before, strict=True):
        assert all(torch.equal(kept[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["one after the other", "residual", "clipped"])
def test_an_exported_program_is_the_same_graph(
    name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its operators are those of torch, not of anybody's code; nothing is printed on the way."""
    networks: dict[str, Callable[[], nn.Module]] = {
        "one after the other": two_convolutions,
        "residual": NarrowResNet,
        "clipped": lambda: Between(nn.ReLU6()),
    }
    models = [seeded(networks[name], seed).double() for seed in range(2)]
    wanted = [t for model in models for t in outputs(model, (IMAGES,))]
    sizes = ({0: torch.export.Dim("batch", min=2, max=512)},)
    models[1] = torch.export.export(models[1], (IMAGES,), dynamic_shapes=sizes).module()
    capfd.readouterr()
    result = pf.merge(models, IMAGES, width=2.0, progress=False, synthetic=0)
    assert "Traceback" not in capfd.readouterr().err
    assert worst(outputs(result.model, (IMAGES,)), wanted) < EXACT


@pytest.mark.parametrize(("name", "k"), PAIRS)
def test_every_spelling_computes_what_it_did(name: str, k: int) -> None:
    """Of other numbers of examples, too."""
    model = pair(name, k)[1]
    program = respell(lower(trace(model, (IMAGES[:2],))))
    assert program.general
    assert worst(outputs(program.module, (IMAGES,)), outputs(model, (IMAGES,))) < EXACT


@pytest.mark.parametrize("name", NAMES)
def test_networks_compute_the_same_in_the_words_of_the_table(name: str) -> None:
    """Whatever else is in them. They have their own order already."""
    network = NETWORKS_OF_ALL[name]
    (model,), given = precise(network, 0), doubled(network.batch(4, seed=1))
    program = respell(lower(trace(model, given)))
    wanted = outputs(model, given)
    assert reorder(program, program) is program
    assert worst(outputs(program.module, given), wanted) < 1e-9


def test_every_spelling_is_tried() -> None:
    """What isn't in the table above can't be wrong unseen; pooling is along two dims here."""
    tried = {
        node.target
        for name, k in PAIRS
        for node in respell(lower(trace(pair(name, k)[1], (IMAGES[:2],)))).module.graph.nodes
    }
    lines = {F.max_pool1d, F.max_pool3d, F.avg_pool1d, F.avg_pool3d}
    missing = {s.function for s in SPELLINGS} - tried - lines
    assert missing == {torch.mean, F.adaptive_avg_pool1d, F.adaptive_avg_pool3d}


class Block(nn.Module):
    """A residual block whose parts run in one order or another."""

    def __init__(self, shortcut_first: bool, turned: bool) -> None:
        super().__init__()
        self.shortcut_first, self.turned = shortcut_first, turned
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.shortcut, self.last = nn.Conv2d(3, 8, 1), nn.Linear(8, 4)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Classes."""
        skipped = self.shortcut(x) if self.shortcut_first else None
        y = self.two(self.activation(self.one(x)))
        skipped = self.shortcut(x) if skipped is None else skipped
        y = skipped + y if self.turned else y + skipped
        return self.last(self.activation(y).mean((2, 3)))


@pytest.mark.parametrize("first", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("other", [(True, True), (True, False), (False, True), (False, False)])
def test_the_order_of_branches_and_summands_is_no_difference(
    first: tuple[bool, bool], other: tuple[bool, bool]
) -> None:
    """What one source reads in one branch, the other reads in the branch that does the same."""
    models = [seeded(partial(Block, *own), k).double() for k, own in enumerate((first, other))]
    result = pf.merge(models, IMAGES, width=2.0, progress=False, synthetic=0)
    wanted = [t for model in models for t in outputs(model, (IMAGES,))]
    assert worst(outputs(result.model, (IMAGES,)), wanted) < EXACT
    assert pf.merge(models, IMAGES, flops=0.7, progress=False, synthetic=0).report.layers


class Scaled(nn.Module):
    """A number that is no part of what is saved, in a sum of two."""

    def __init__(self, turned: bool) -> None:
        super().__init__()
        self.block = Block(turned, turned)
        self.register_buffer("by", torch.full((1, 3, 1, 1), 0.5), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Classes."""
        return self.block(x * self.by)


def test_constants_stay_constants_in_another_order() -> None:
    """Of what is saved they are no part, before and after."""
    first, other = (
        lower(trace(seeded(partial(Scaled, which), 0).double(), (IMAGES[:2],)))
        for which in (True, False)
    )
    spelled = respell(other)
    turned = reorder(respell(first), spelled)
    assert turned is not spelled
    assert turned.module.state_dict().keys() == other.module.state_dict().keys()
    assert worst(outputs(turned.module, (IMAGES,)), outputs(other.module, (IMAGES,))) < EXACT


def test_a_network_and_itself_in_other_words_are_one(tmp_path: Path) -> None:
    """All channels merge, the function is the source's, and what is saved is loaded."""
    images = IMAGES.float()
    one, two = (seeded(partial(Block, which, which), 0) for which in (True, False))
    result = pf.merge([one, two], images, width=1.0, heads="shared", progress=False, synthetic=0)
    assert all(len(group.merged) == group.slots for group in result.plan.groups)
    assert worst(outputs(result.model, (images,)), outputs(one, (images,))) < 1e-4
    result.save(tmp_path / "out")
    again = pf.load(tmp_path / "out")
    assert worst(outputs(again, (images,)), outputs(result.model, (images,))) < 1e-5


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (F.relu, F.silu),
        (nn.MaxPool2d(2), nn.AvgPool2d(2)),
        (nn.MaxPool2d(2), nn.MaxPool2d(2, 1)),
        (nn.Softmax(3), nn.Softmax(2)),
        (nn.ELU(), nn.ELU(0.5)),
        (lambda x: x - x.tanh(), lambda x: x.tanh() - x),
        (F.silu, lambda x: x * x.tanh().sigmoid()),
        (lambda x: x + x.tanh(), lambda x: x + x.sigmoid()),
        (lambda x: x + x.mean(1, keepdim=True), lambda x: x + x.mean((2, 3), keepdim=True)),
    ],
)
def test_what_is_something_else_is_refused(one: Operator, two: Operator) -> None:
    """The table makes equal only what is."""
    models = [
        seeded(partial(Between, operator), k).double() for k, operator in enumerate((one, two))
    ]
    with pytest.raises(pf.IncompatibleModelsError, match="source 1 differs from source 0"):
        pf.merge(models, IMAGES, width=1.0, progress=False)


def test_without_the_passes_they_are_refused() -> None:
    """Control: and a graph that lacks something stays as it is."""
    models = pair("gate", 1)
    programs = tuple(lower(trace(model, (IMAGES[:2],))) for model in models)
    with pytest.raises(pf.IncompatibleModelsError):
        compare(programs, same_outputs=True)
    spelled = [respell(program) for program in programs]
    with pytest.raises(pf.IncompatibleModelsError):
        compare(spelled, same_outputs=True)
    compare([spelled[0], reorder(*spelled)], same_outputs=True)
    shorter = lower(trace(pair("relu", 1)[0], (IMAGES[:2],)))
    assert reorder(programs[0], shorter) is shorter
