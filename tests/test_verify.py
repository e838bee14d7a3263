"""The rewrite is tried where its answer is known, before anything is built on it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import pleas_fx as pf
from passes import verify as module
from passes.lower import lower
from passes.rewrite import Rewritten
from passes.trace import trace
from passes.verify import verify
from pleas_fx.heads import given_lanes
from tests.networks import NETWORKS

NAMES = ("resnet", "densenet", "swin", "swin_v2", "group_norm_resnet", "lambda")
rewrite = module.rewrite


def prepared(name: str) -> tuple[Any, ...]:
    """Two sources, their symmetry, the lanes of separate heads, and inputs."""
    network = NETWORKS[name]
    inputs = network.inputs()
    programs = [lower(trace(network.make(seed), inputs)) for seed in (0, 1)]
    symmetry = pf.permutation_groups(network.make(0), inputs)
    symmetries = [symmetry] * 2
    return programs, symmetries, given_lanes(programs, symmetries, "separate", None), inputs


def swapped(*given: Any, **options: Any) -> Rewritten:
    """A rewrite that exchanges two rows of a weight, as a wrong order of channels would."""
    found = rewrite(*given, **options)
    weights = [p for p in found.module.parameters() if p.dim() > 1 and len(p) > 3]
    with torch.no_grad():
        weights[len(weights) // 2][[0, 3]] = weights[len(weights) // 2][[3, 0]]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_nothing_merged_is_the_sources(name: str) -> None:
    """Rounding is far below the tolerance."""
    assert verify(*prepared(name)) < 0.05


def test_channels_in_a_wrong_order_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no merge is made then."""
    monkeypatch.setattr(module, "rewrite", swapped)
    assert verify(*prepared("resnet")) > 1
    network = NETWORKS["resnet"]
    with pytest.raises(pf.GraphError, match="side by side"):
        pf.merge([network.make(0), network.make(1)], network.inputs()[0], progress=False)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda each: each, 0.0),
        (lambda each: each[:1], float("inf")),
        (lambda each: [each[0], each[1] * float("nan")], float("inf")),
    ],
)
def test_outputs_that_are_missing_or_no_numbers_are_noticed(
    monkeypatch: pytest.MonkeyPatch, change: Any, error: float
) -> None:
    """Whichever output it is; unchanged ones are the control."""
    programs, symmetries, lanes, inputs = prepared("resnet")

    class Answering(torch.nn.Module):
        def forward(self, *_: torch.Tensor) -> Any:
            return change([program.module(*inputs) for program in programs])

    monkeypatch.setattr(module, "rewrite", lambda *_, **__: SimpleNamespace(module=Answering()))
    assert verify(programs, symmetries, lanes, inputs) == error
