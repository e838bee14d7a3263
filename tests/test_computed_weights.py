"""Weights that are read from one axis of a table: rows, columns and kernel all lie along it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pleas_fx as pf
from passes.groups import groups
from passes.trace import trace
from pleas_fx import budget, permutation_groups
from pleas_fx.errors import BudgetError
from pleas_fx.labels import Labeller
from pleas_fx.rules import contraction
from tests.networks import CLASSES
from tests.randomise import seeded

OUT, IN, EXPERTS = 8, 6, 3
ENTRIES = OUT * IN * 3 * 3


class Experts(nn.Module):
    """A convolution whose kernel is a mixture, drawn up anew for each batch (CondConv)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.route = nn.Conv2d(3, IN, 3), nn.Linear(IN, EXPERTS)
        self.table = nn.Parameter(torch.randn(EXPERTS, ENTRIES) / 8)
        self.head = nn.Conv2d(OUT, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        shares = self.route(x.mean((0, 2, 3))).softmax(0)
        weight = (shares @ self.table).view(OUT, IN, 3, 3)
        return self.head(F.conv2d(x, weight).relu()).mean((2, 3))


def inputs() -> tuple[Tensor]:
    """Two images."""
    return (torch.randn((2, 3, 9, 9), generator=torch.Generator().manual_seed(0)),)


def tied(monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], int]:
    """The class of every place of every axis, and how many ties were noted."""
    found: list[int] = []
    before = Labeller.tie

    def counted(self: Labeller, a: Tensor, b: Tensor) -> None:
        known = len(self.ties)
        before(self, a, b)
        found.extend(new.shape[1] for new in self.ties[known:])

    with monkeypatch.context() as patched:
        patched.setattr(Labeller, "tie", counted)
        layout = groups(trace(seeded(Experts, 0), inputs())).layout
    return [int(c) for own in layout.axes.values() for c in own.ravel()], sum(found)


def test_the_mixture_is_certified_and_its_experts_may_be_exchanged() -> None:
    """Only these and nothing along the table's long axis; the certifier agrees."""
    symmetry = permutation_groups(seeded(Experts, 0), inputs())
    assert symmetry.certificate.passed
    assert symmetry.certificate.negative_control_caught
    assert not symmetry.certificate.culprits
    assert EXPERTS in {g.size for g in symmetry.groups}
    assert ENTRIES not in {g.size for g in symmetry.groups}


def test_rows_tied_once_tie_the_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classes are those of both axes tied by themselves; the ties are half as many."""
    once, ties = tied(monkeypatch)
    apart = lambda ctx, w: (contraction._axis(ctx, w, 0), contraction._axis(ctx, w, 1))  # noqa: E731
    monkeypatch.setattr(contraction, "_axes", apart)
    twice, more = tied(monkeypatch)
    assert once == twice
    assert ties < 0.6 * more


def test_a_budget_is_met_by_merging_all_where_nothing_else_fits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A convolution with a computed weight runs once for every lane, which no cost model says.

    The control: plans with channels of their own don't fit, however small.
    """
    models, images = [seeded(Experts, s) for s in (0, 1)], torch.randn(16, 3, 9, 9)
    options = {"heads": "shared", "trials": 0, "synthetic": 0, "progress": False}
    found = pf.merge(models, images, flops=1.2, **options)
    assert found.report.merged.flops == found.report.sources[0].flops
    assert all(len(g.lanes) == 1 for g in found.plan.groups)
    monkeypatch.setattr(budget, "merged_only", lambda _: None)
    with pytest.raises(BudgetError, match=r"feasible from 1\.8"):
        pf.merge(models, images, flops=1.2, **options)
