"""What the rewrite can't follow stays a single operator, and the rest goes on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import pleas_fx as pf
from passes import rewrite as module
from passes._lanes import Mismatch
from pleas_fx import prepare
from tests.merging import outputs, worst
from tests.networks import noise
from tests.randomise import seeded

IMAGES = noise((12, 3, 6, 6))
emit = module._emit
WHY = "nobody follows atan"


class Odd(nn.Module):
    """An operator between two layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Conv2d(width, 7, 1), nn.Conv2d(7, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Around an operator that no rewrite follows."""
        return self.outer(torch.atan(self.inner(x)))


class Odder(Odd):
    """Of another kind."""


class Network(nn.Module):
    """Plain layers, an odd module twice, one of another kind, plain layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 1))
        self.odd = nn.Sequential(Odd(6), nn.ReLU(), Odd(6))
        self.other = Odder(6)
        self.last = nn.Sequential(nn.Conv2d(6, 9, 1), nn.ReLU(), nn.Conv2d(9, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        """One after the other."""
        return self.last(self.other(self.odd(self.first(x))))


class Bare(Network):
    """The operator in the network's own code."""

    def forward(self, x: Tensor) -> Tensor:
        """No module holds it."""
        return self.last(torch.atan(self.first(x)))


def refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rewrite takes no atan, at any width."""

    def refusing(walk: Any, layers: Any, nodes: Any, node: fx.Node, heads: str) -> None:
        if node.target is torch.atan:
            raise Mismatch((), node.name, WHY)
        emit(walk, layers, nodes, node, heads)

    monkeypatch.setattr(module, "_emit", refusing)


def merged(kind: type[nn.Module], **options: Any) -> tuple[list[nn.Module], pf.MergeResult]:
    """Two sources of a kind, and their merge."""
    sources = [seeded(kind, seed).double() for seed in (0, 1)]
    images = IMAGES[0].double()
    return sources, pf.merge(sources, images, synthetic=0, progress=False, **options)


def test_modules_that_are_refused_stay_single_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a kind at once, each named with the reason; what they compute is exact."""
    refuse(monkeypatch)
    sources, result = merged(Network, width=2.0)
    images = IMAGES[0].double()
    assert (
        worst(outputs(result.model, (images,)), [o for s in sources for o in outputs(s, (images,))])
        < 1e-12
    )
    for path in ("odd.0", "odd.2", "other"):
        assert f"{path} stays a single operator: {WHY}" in result.report.warnings


def test_the_rest_is_still_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other layers take the widths that a budget asks for."""
    refuse(monkeypatch)
    _, result = merged(Network, flops=1.3)
    ratio = result.report.merged.flops / result.report.sources[0].flops
    assert ratio <= 1.3
    assert any(group.merged for group in result.plan.groups)


def test_what_is_followed_is_taken_apart() -> None:
    """The control: without a refusal nothing stays, and nothing is said."""
    _, result = merged(Network, flops=1.3)
    assert not [w for w in result.report.warnings if "single operator" in w]


def test_a_refusal_in_the_networks_own_code_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no module to leave alone; the node and the reason are named."""
    refuse(monkeypatch)
    with pytest.raises(pf.GraphError, match=f"atan.*{WHY}"):
        merged(Bare, width=2.0)


def test_what_cannot_be_traced_around_is_named_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.export knows no modules: the refusal counts, not that leaves aren't possible."""
    refuse(monkeypatch)
    retraced = prepare.trace

    def tracing(model: nn.Module, inputs: Any, leaves: Any = ()) -> Any:
        if leaves:
            raise pf.TraceError("no leaves")
        return retraced(model, inputs)

    monkeypatch.setattr(prepare, "trace", tracing)
    with pytest.raises(pf.GraphError, match=f"atan.*{WHY}"):
        merged(Network, width=2.0)
