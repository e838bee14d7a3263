"""Networks are large: what holds their weights, and for how long."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

import pleas_fx as pf
from passes import probe, verify
from passes.lower import lower
from passes.match import match_activations
from passes.observe import Statistics, observe
from passes.plan import Constraints, menu
from passes.rewrite import Rewritten
from passes.trace import trace
from pleas_fx import budget
from pleas_fx.budget import Budget
from pleas_fx.prepare import prepare
from pleas_fx.request import Clock, Options
from tests.merging import NAMES, calibration, clone, merge
from tests.networks import NETWORKS, noise
from tests.randomise import seeded

IMAGES = noise((2, 3, 6, 6))


class TinyTied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        """One behind the other."""
        return self.second(self.first(x).relu())


class Writing(nn.Module):
    """Clips its own weight on every call, in one of several ways."""

    def __init__(self, clip: Callable[[nn.Parameter], object]) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)
        self.clip = clip

    def forward(self, x: Tensor) -> Tensor:
        """Convolutions, the first one clipped."""
        self.clip(self.first.weight)
        return self.last(self.first(x).relu())


@torch.no_grad()
def in_place(weight: nn.Parameter) -> None:
    """By an operator that writes."""
    weight.clamp_(-0.1, 0.1)


@torch.no_grad()
def into(weight: nn.Parameter) -> None:
    """By one that is told where to write."""
    torch.clamp(weight, -0.1, 0.1, out=weight)


def behind(weight: nn.Parameter) -> None:
    """Unseen by autograd."""
    weight.data.clamp_(-0.1, 0.1)


def exchanged(weight: nn.Parameter) -> None:
    """Other data for the same parameter."""
    weight.data = weight.data.clamp(-0.1, 0.1)


def pointers(*models: nn.Module) -> set[int]:
    """Where the parameters and buffers of models lie."""
    tensors = [t for model in models for t in (*model.parameters(), *model.buffers())]
    return {t.untyped_storage().data_ptr() for t in tensors if t.numel()}


class TestPrograms:
    """The analysis reads the model's own parameters, and never writes to them."""

    def test_a_program_has_the_parameters_of_its_model(self) -> None:
        """The very tensors; its modules are other ones."""
        model = TinyTied()
        program = trace(model, (torch.zeros(1, 3),))
        lowered = lower(program)
        for module in (program.module, lowered.module):
            assert {*map(id, module.parameters())} == {*map(id, model.parameters())}
            assert module.first is not model.first

    @pytest.mark.parametrize("clip", [in_place, into, behind, exchanged])
    def test_code_that_writes_gets_copies(self, clip: Callable[[nn.Parameter], object]) -> None:
        """Whether it can be followed then or not, the model stays as it was."""
        model = seeded(lambda: Writing(clip), 0)
        before = clone(model)
        own = pointers(model)
        try:
            program = trace(model, IMAGES)
        except pf.TraceError:
            pass
        else:
            assert not own & pointers(program.module)
        assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
        assert pointers(model) == own
        model(*IMAGES)  # the control: this does change it
        assert not torch.equal(model.first.weight, before["first.weight"])

    def test_parameters_that_the_first_run_makes_are_not_made_in_the_model(self) -> None:
        """A lazy layer is traced as a copy."""
        model = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
        program = trace(model, IMAGES)
        assert program.module.get_parameter("0.weight").shape == (4, 3, 3, 3)
        assert is_lazy(model.get_parameter("0.weight"))


@pytest.mark.parametrize("name", NAMES)
def test_a_merge_leaves_its_sources_alone(name: str) -> None:
    """To the bit; and what it returns can be trained without them."""
    sources = [NETWORKS[name].make(seed) for seed in (0, 1)]
    before = [clone(source) for source in sources]
    result = merge(name, sources, width=1.2)
    for source, own in zip(sources, before, strict=True):
        assert all(torch.equal(tensor, own[key]) for key, tensor in source.state_dict().items())
    assert not pointers(*sources) & pointers(result.model)


class Watched:
    """Calls a rewrite; how many of its earlier networks still have their weights."""

    def __init__(self, rewrite: Callable[..., Rewritten]) -> None:
        self.rewrite = rewrite
        self.made: list[list[weakref.ref[Tensor]]] = []
        self.alive: list[int] = []

    def __call__(self, *given: Any, **options: Any) -> Rewritten:
        """The rewrite itself."""
        self.alive.append(sum(any(ref() is not None for ref in own) for own in self.made))
        found = self.rewrite(*given, **options)
        self.made.append([weakref.ref(p) for p in found.module.parameters()])
        return found


def watched(monkeypatch: pytest.MonkeyPatch, places: Sequence[Any]) -> Watched:
    """One of them for the rewrites of several modules."""
    found = Watched(budget.rewrite)
    for place in places:
        monkeypatch.setattr(place, "rewrite", found)
    return found


def searched() -> None:
    """A merge whose budget takes several rounds."""
    sources = [NETWORKS["aggregating"].make(seed) for seed in (0, 1)]
    batches = calibration("aggregating")
    pf.merge(sources, batches, flops=0.5, trials=0, progress=False)


def test_networks_that_are_only_tried_are_freed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the next one is made; graphs are cycles, which Python would collect late."""
    found = watched(monkeypatch, (probe, verify, budget))
    searched()
    assert len(found.alive) > 6
    assert max(found.alive) == 0


def test_without_freeing_they_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: the test above can fail."""
    for place in (probe, verify, budget):
        monkeypatch.setattr(place, "discard", lambda network: None)
    found = watched(monkeypatch, (probe, verify, budget))
    searched()
    assert max(found.alive) > 0


def sums(statistics: Statistics) -> set[int]:
    """The accumulators that are held."""
    points = (*statistics.read.values(), *statistics.made.values())
    return {id(point.moments) for own in points for point in own}


@pytest.mark.parametrize("name", ["flatten", "narrow_resnet", "mobilenet_v2", "registers", "unet"])
def test_plans_are_made_without_what_only_matching_compares(name: str) -> None:
    """Places that aren't read go before anything is planned, and every option stays as it was."""
    network, options = NETWORKS[name], Options(Budget(flops=1.0), trials=0)
    sources = [network.make(seed) for seed in (0, 1)]
    prepared = prepare(sources, network.batch(2, seed=0), options, Clock())
    symmetries, batches = prepared.symmetries, calibration(name)
    everything = observe(prepared.programs, symmetries, batches, seed=0)
    matching = match_activations(prepared.programs, symmetries[0], everything)
    needed = everything.for_planning()
    constraints = Constraints((), prepared.given)
    full, found = (
        menu(prepared.programs, symmetries, statistics, matching, constraints)
        for statistics in (everything, needed)
    )
    errors = [[option.error for option in own.options] for own in full.decisions]
    assert [[option.error for option in own.options] for own in found.decisions] == errors
    assert sums(needed) < sums(everything)
