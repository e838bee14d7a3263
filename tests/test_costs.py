"""What a network is said to cost."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import pleas_fx as pf
from passes.groups import groups
from passes.trace import trace
from pleas_fx.costs import terms
from pleas_fx.explicit import explicit_operators, steps_of
from tests.merging import NAMES
from tests.networks import NETWORKS, noise
from tests.randomise import seeded

TOKENS, WIDTH = 10, 8


class Attention(nn.Module):
    """One head over given tokens, as a fused operator or written out."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.project = nn.Linear(WIDTH, 3 * WIDTH)
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x).chunk(3, -1)
        if self.fused:
            return F.scaled_dot_product_attention(q, k, v)
        return (q @ k.transpose(-2, -1) / WIDTH**0.5).softmax(-1) @ v


class Transposed(nn.Module):
    """Channels last."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


class Encoder(nn.TransformerEncoderLayer):
    """A layer that torch computes by one fused operator where it can."""

    def __init__(self) -> None:
        super().__init__(WIDTH, 2, 4 * WIDTH, batch_first=True)


def test_attention_is_counted_fused_or_not() -> None:
    """The projection, and two products of tokens with tokens."""
    inputs = (torch.randn(3, TOKENS, WIDTH),)
    found = [pf.count(Attention(fused).eval(), inputs).flops for fused in (True, False)]
    assert found == [2 * TOKENS * WIDTH * (3 * WIDTH + 2 * TOKENS)] * 2


def test_fused_encoder_layers_are_counted() -> None:
    """Attention's projections and products, and the two layers behind it."""
    flops = pf.count(Encoder().eval(), (torch.randn(3, TOKENS, WIDTH),)).flops
    assert flops == 2 * TOKENS * WIDTH * (4 * WIDTH + 2 * TOKENS + 8 * WIDTH)


@pytest.mark.parametrize("fused", [True, False])
def test_attention_of_both_sources_costs_twice_that_of_one(fused: bool) -> None:
    """Nothing merged: the sources' FLOPs and no more."""

    def make() -> nn.Module:
        stem = (nn.Conv2d(3, WIDTH, 3), nn.Flatten(2), Transposed(), Attention(fused))
        return nn.Sequential(*stem, nn.Linear(WIDTH, 5))

    sources = [seeded(make, seed) for seed in (0, 1)]
    (images,) = noise((12, 3, 6, 6))
    result = pf.merge(sources, images, width=2.0, progress=False)
    assert result.report.merged.flops == 2 * result.report.sources[0].flops


class Asked(nn.Module):
    """A layer on a parameter that is the same for all examples, as decoders' queries are."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.layer = nn.Parameter(torch.randn(1, 3)), nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The image's mean, weighted."""
        return self.layer(self.token.expand(len(x), -1)) * x.mean()


def test_layers_on_views_of_parameters_are_counted() -> None:
    """Whose gradients torch's counter would ask for."""
    assert pf.count(Asked(), torch.randn(2, 1, 5, 5)).flops == 2 * 3 * 4


class Steps(nn.Module):
    """A recurrent layer over the columns of an image."""

    def __init__(self, kind: type[nn.RNNBase], **options: bool) -> None:
        super().__init__()
        self.options = options
        self.layer = kind(3, 4, num_layers=2, **options)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, T) to every step's states."""
        order = (0, 2, 1) if self.options.get("batch_first") else (2, 0, 1)
        found: Tensor = self.layer(x.permute(*order))[0]
        return found if self.options.get("batch_first") else found.transpose(0, 1)


@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"bidirectional": True}], ids=str)
@pytest.mark.parametrize(("kind", "gates"), [(nn.RNN, 1), (nn.GRU, 3), (nn.LSTM, 4)])
def test_recurrent_layers_cost_their_weights_at_every_step(
    kind: type[nn.RNNBase], gates: int, options: dict[str, bool]
) -> None:
    """torch's counter misses some of them; planning counts the same."""
    model, (x,) = Steps(kind, **options).eval(), noise((2, 3, TOKENS))
    ways = 1 + options.get("bidirectional", False)
    wanted = 2 * TOKENS * ways * gates * 4 * ((3 + 4) + (4 * ways + 4))
    assert pf.count(model, x).flops == wanted
    program = trace(model, (x,))
    found = terms(program, groups(program).layout)
    assert sum(term.flops for term in found) == wanted
    assert sum(term.params for term in found) == pf.count(model, x).params


@pytest.mark.parametrize("name", NAMES)
def test_the_count_is_that_of_torchs_own_counter(name: str) -> None:
    """``FlopCounterMode`` follows modules by hooks; the sum is the same."""
    network = NETWORKS[name]
    model, inputs = network.make(0), tuple(t[:1] for t in network.inputs())
    counter = FlopCounterMode(display=False)
    detached = {key: p.detach() for key, p in model.named_parameters()}
    with explicit_operators(), steps_of(*model.modules()), torch.no_grad(), counter:
        functional_call(model, detached, inputs)
    assert pf.count(model, inputs).flops == counter.get_total_flops() > 0


def test_a_merge_imports_no_compiler() -> None:
    """Which takes seconds, and which modes of dispatch ask for unless they say otherwise."""
    program = """
import sys, torch, pleas_fx
models = [torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 2, 1)) for _ in "ab"]
pleas_fx.merge([m.eval() for m in models], torch.randn(8, 3, 6, 6), flops=1.0, progress=False)
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
