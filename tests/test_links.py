"""Layers before an activation: fitted to what it passes on (oracle 5, behind activations)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import pleas_fx as pf
from fixtures.load import calibration_0_4, calibration_5_9, sources, test_set
from passes._links import behind
from passes.trace import trace
from pleas_fx.algebra import links
from pleas_fx.algebra.gram import Gram
from pleas_fx.algebra.links import Block, Link, fit_link
from pleas_fx.algebra.ridge import Solution, solve
from pleas_fx.rules.activations import SLOPES
from tests.merging import outputs
from tests.networks import noise

ROWS, INPUTS, OUTPUTS, GROUPS, RIDGE = 300, 7, 5, 3, 1e-3
LINKS = {
    "relu": Link(torch.relu, SLOPES["ReLU"]),
    "silu": Link(F.silu, SLOPES["SiLU"]),
    "sigmoid": Link(torch.sigmoid, SLOPES["Sigmoid"]),
    "relu6": Link(F.relu6, SLOPES["ReLU6"]),
}
IMAGES = noise((6, 3, 8, 8))


@cache
def rows(beside: bool) -> tuple[Gram, Block, Tensor]:
    """Correlated inputs that don't explain what is wanted, and a prior."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(GROUPS, *shape, dtype=torch.float64, generator=generator)

    z = normal(ROWS, INPUTS) @ normal(INPUTS, INPUTS) + 0.5
    own = z @ normal(INPUTS, OUTPUTS) + 4.0 * normal(ROWS, OUTPUTS) - 1.0
    gram = Gram.zeros(INPUTS, OUTPUTS, (GROUPS,))
    gram.add(z, own)
    other = normal(ROWS, OUTPUTS)
    block = Block(z, own + other, other + 0.3 * normal(ROWS, OUTPUTS)) if beside else Block(z, own)
    return gram, block, 0.1 * normal(OUTPUTS, INPUTS)


def apart(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((found - wanted).abs().max() / wanted.abs().max())


def fitted(link: Link, beside: bool) -> tuple[Solution, Solution]:
    """The least squares, and what the link makes of them."""
    gram, block, prior = rows(beside)
    start = solve(gram, prior, torch.zeros(GROUPS, OUTPUTS), RIDGE)
    return start, fit_link(gram, start, prior, lambda: [block], link)


def planted(name: str, beside: bool) -> tuple[Gram, Block, Tensor]:
    """Rows of planted weights; what the activation cuts off is moved far away."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(GROUPS, *shape, dtype=torch.float64, generator=generator)

    z, weight = normal(ROWS, INPUTS) @ normal(INPUTS, INPUTS) + 0.5, normal(OUTPUTS, INPUTS)
    other = normal(ROWS, OUTPUTS)
    read = z @ weight.mT + other * beside
    away = 30 * normal(ROWS, OUTPUTS).abs()
    wanted = torch.where(read < 0, read - away, read)
    if name == "relu6":
        wanted = torch.where(read > 6, read + away, wanted)
    gram = Gram.zeros(INPUTS, OUTPUTS, (GROUPS,))
    gram.add(z, wanted - other * beside)
    return gram, Block(z, wanted, other if beside else None), weight


@pytest.mark.parametrize("name", ["relu", "relu6"])
@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("intercept", [False, True])
def test_planted_weights_are_found_although_what_is_cut_off_is_wrong(
    name: str, beside: bool, intercept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With many steps; the control is where they begin."""
    monkeypatch.setattr(links, "STEPS", 3000)
    monkeypatch.setattr(links, "WORTH", -math.inf)
    gram, block, weight = planted(name, beside)
    nothing = torch.zeros_like(weight)
    start = solve(gram, nothing, nothing[..., 0], 1e-12, intercept=intercept)
    found = fit_link(gram, start, nothing, lambda: [block], LINKS[name], intercept=intercept)
    assert float((found.weight - weight).abs().max()) < 1e-6
    assert float((start.weight - weight).abs().max()) > 1.0, "negative control"


@pytest.mark.parametrize("name", LINKS)
def test_steps_go_to_where_nothing_pulls(name: str) -> None:
    """Plain steps end at the optimum: the slope of what is minimised is zero there."""
    gram, block, prior = rows(False)
    link = LINKS[name]
    nothing = torch.zeros(GROUPS, OUTPUTS, dtype=torch.float64)
    system = solve(gram, prior, nothing, RIDGE).system
    assert system is not None
    steps = links._Steps(system, prior, gram.centre, link.slope, True)
    at = links._Map(prior, nothing)
    moved = []
    for _ in range(4000):
        further = steps.taken(at, links._seen(at, [block], link))
        moved.append(float((further.weight - at.weight).abs().max()))
        at = further
    made = block.z @ at.weight.mT + at.bias.unsqueeze(-2)
    missing = (link.passed(made) - link.passed(block.wanted)) / link.slope
    centred = block.z - block.z.mean(1, keepdim=True)
    damping = RIDGE * centred.square().mean((1, 2))
    along = missing.mT @ centred / ROWS + damping[:, None, None] * (at.weight - prior)
    assert moved[-1] < 1e-6 < moved[0]
    assert float(along.abs().max()) < 1e-4
    assert float(missing.mean(1).abs().max()) < 1e-4


@pytest.mark.parametrize("name", LINKS)
def test_a_few_steps_never_leave_more_behind_the_activation(name: str) -> None:
    """What is told of the solution is what the rows show."""
    link = LINKS[name]
    start, found = fitted(link, True)
    _, block, _ = rows(True)
    assert block.beside is not None
    wanted = link.passed(block.wanted)

    def left(solution: Solution) -> Tensor:
        made = block.z @ solution.weight.mT + solution.bias.unsqueeze(-2) + block.beside
        return (link.passed(made) - wanted).square().mean(1)

    assert apart(found.unexplained, left(found)) < 1e-12
    assert apart(found.variance, wanted.var(1, correction=0)) < 1e-12
    assert float(left(found).sum()) < 0.99 * float(left(start).sum())
    made = block.z @ found.weight.mT
    assert apart(found.output_mean, made.mean(1)) < 1e-12
    assert apart(found.output_variance, made.var(1, correction=0)) < 1e-12
    assert apart(found.unexplained, left(start)) > 1e-3, "negative control"


def test_where_everything_passes_it_stays_at_the_least_squares() -> None:
    """Their optimum is that of a link that changes nothing."""
    start, found = fitted(Link(lambda x: x, 1.0), False)
    assert apart(found.weight, start.weight) < 1e-12
    assert apart(found.bias, start.bias) < 1e-12


def test_what_is_cut_off_on_both_sides_is_worth_nothing() -> None:
    """However far below zero it is: one column for one output, which is wanted below zero.

    Least squares go after it; behind the activation there is nothing to go after.
    """
    z = torch.linspace(1.0, 2.0, 50, dtype=torch.float64).reshape(1, -1, 1)
    wanted = -10.0 * z.square()
    gram = Gram.zeros(1, 1, (1,))
    gram.add(z, wanted)
    prior = torch.full((1, 1, 1), -1.0)
    start = solve(gram, prior, torch.zeros(1, 1), 1e-6)
    found = fit_link(gram, start, prior, lambda: [Block(z, wanted)], LINKS["relu"])
    assert start.residual > 1e-4
    assert found.unexplained.max() == 0
    assert torch.equal(found.weight, start.weight)


@pytest.mark.parametrize("name", SLOPES)
def test_no_activation_rises_by_more_than_its_slope(name: str) -> None:
    """And each by nearly as much somewhere."""
    x = torch.linspace(-8, 8, 400001, dtype=torch.float64)
    y = getattr(nn, name)()(x.clone())
    steepest = float(((y[1:] - y[:-1]) / (x[1:] - x[:-1])).abs().max())
    assert 0.98 * SLOPES[name] < steepest <= SLOPES[name] * (1 + 1e-9)


# -- what stands behind a layer -------------------------------------------------------------------


class Tail(nn.Module):
    """A convolution, and something behind it."""

    def __init__(self, tail: Callable[[Tensor, Tensor], object]) -> None:
        super().__init__()
        self.layer, self.tail = nn.Conv2d(3, 3, 1), tail

    def forward(self, x: Tensor) -> object:
        """What comes behind reads the input, too."""
        return self.tail(self.layer(x), x)


def found_behind(tail: Callable[[Tensor, Tensor], object]) -> str | None:
    """ "direct", "sum" or None."""
    program = trace(Tail(tail).eval(), IMAGES)
    layer = next(n for n in program.module.graph.nodes if n.op == "call_module")
    found = behind(program.module, layer)
    if found is None:
        return None
    return "direct" if found.sum is None else "sum"


@pytest.mark.parametrize(
    ("tail", "what"),
    [
        (lambda y, x: torch.relu(y), "direct"),
        (lambda y, x: F.relu(y, inplace=True), "direct"),
        (lambda y, x: y.relu(), "direct"),
        (lambda y, x: F.leaky_relu(y, 0.1), "direct"),
        (lambda y, x: F.gelu(y, approximate="tanh"), "direct"),
        (lambda y, x: (torch.relu(y), torch.relu(y)), "direct"),
        (lambda y, x: torch.relu(y + x), "sum"),
        (lambda y, x: torch.relu(x + y), "sum"),
        (lambda y, x: F.silu(torch.add(y, x)), "sum"),
        (lambda y, x: y, None),
        (lambda y, x: y + x, None),
        (lambda y, x: torch.relu(y) + y, None),
        (lambda y, x: (torch.relu(y), torch.tanh(y)), None),
        (lambda y, x: torch.relu(y + x) + (y + x), None),
        (lambda y, x: torch.relu(s := y + x) + s, None),
        (lambda y, x: torch.relu(torch.add(y, x, alpha=2)), None),
        (lambda y, x: torch.relu(y + 1), None),
        (lambda y, x: torch.relu(y * x), None),
        (lambda y, x: torch.softmax(y, 1), None),
    ],
)
def test_activations_are_found(tail: Callable[[Tensor, Tensor], object], what: str | None) -> None:
    """Only where nothing else reads the layer, or its sum with another value."""
    assert found_behind(tail) == what


class ReLU(nn.Module):
    """Somebody's own: it takes images only, or looks at its neighbours."""

    def __init__(self, images: bool) -> None:
        super().__init__()
        self.images = images

    def forward(self, x: Tensor) -> Tensor:
        """Not by number."""
        if self.images:
            batch, channels, height, width = x.shape
            return x.relu().reshape(batch, channels, height, width)
        return x.relu() - x.relu().mean(1, keepdim=True)


@pytest.mark.parametrize("images", [False, True])
def test_what_only_has_the_name_of_an_activation_is_none(images: bool) -> None:
    """The control is torch's own, in the same graph."""
    for activation, found in ((ReLU(images), False), (nn.ReLU(), True)):
        root = nn.Sequential(nn.Conv2d(3, 3, 1), activation)
        graph = fx.Graph()
        layer = graph.call_module("0", (graph.placeholder("x"),))
        graph.output(graph.call_module("1", (layer,)))
        assert (behind(fx.GraphModule(root, graph), layer) is not None) == found


def test_an_activation_that_writes_to_its_input_leaves_what_is_kept() -> None:
    """The link works on a copy."""
    program = trace(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(inplace=True)).eval(), IMAGES)
    layer = next(n for n in program.module.graph.nodes if n.op == "call_module")
    found = behind(program.module, layer)
    assert found is not None
    values = torch.linspace(-1, 1, 9).reshape(3, 3)
    before = values.clone()
    assert torch.equal(found.link.passed(values), before.relu())
    assert torch.equal(values, before)


# -- in networks ----------------------------------------------------------------------------------


def left(images: int) -> float:
    """Of the outputs of the fixtures' networks, at half of one's FLOPs, on new images."""
    calibration = pf.PerSource((calibration_0_4()[:images], calibration_5_9()[:images]))
    models = sources()
    merged = pf.merge(models, calibration, flops=0.5, trials=0, progress=False).model
    new = test_set()[0][:500]
    errors = []
    for own, source in zip(outputs(merged, (new,)), models, strict=True):
        (wanted,) = outputs(source, (new,))
        spread = (wanted - wanted.mean(0)).square().mean()
        errors.append(float((own - wanted).square().mean() / spread))
    return sum(errors) / len(errors)


def test_less_of_the_outputs_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against least squares alone."""
    with_links = left(256)
    monkeypatch.setattr(links, "STEPS", 0)
    assert with_links < 0.95 * left(256)
