"""The integer program behind the planner's gap, on menus small enough to try everything."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from benchmarks.accuracy.optimum import optimum
from pleas_fx.costs import CostModel, Term
from pleas_fx.ir import GroupId, Membership
from pleas_fx.options import APART, Decision, Option, allocate

GROUPS = [GroupId(k) for k in range(4)]
SHAPE = (4, 3)
ROWS = ([0], [1, 2], [3])  # the second decision is of two groups
SECONDS = 20.0


def instance(seed: int) -> tuple[list[Decision], CostModel]:
    """A chain of layers with a skip, and four options a decision: more slots, less error."""
    random = np.random.default_rng(seed)
    decisions = []
    for own in ROWS:
        widths = np.sort(random.uniform(0.2, 1.0, 4))
        errors = np.sort(random.uniform(0.0, 1.0, 4))[::-1]
        options = [
            Option(
                w * random.dirichlet(np.ones(3)), float(e), path=APART if k == 3 else 0, length=k
            )
            for k, (w, e) in enumerate(zip(widths, errors, strict=True))
        ]
        decisions.append(Decision(tuple(GROUPS[k] for k in own), tuple(options)))
    links = [(-1, 0), (0, 1), (1, 2), (2, 3), (0, 3), (3, -1)]
    terms = [Term(float(random.uniform(0.1, 1)), 0.0, {b: 1.0}, {a: 1.0}) for a, b in links]
    terms.append(Term(0.2, 0.0, {2: 1.0}, None))
    memberships = [Membership(m) for m in (3, 1, 2)]
    background = np.array([1.0, 0.0, 0.0])
    return decisions, CostModel(terms, GROUPS, memberships, background, resource="flops")


def everything(decisions: list[Decision], model: CostModel) -> list[tuple[float, float]]:
    """Cost and error of all choices."""
    found = []
    for choice in product(*(range(len(d.options)) for d in decisions)):
        x, error = np.zeros(SHAPE), 0.0
        for own, decision, picked in zip(ROWS, decisions, choice, strict=True):
            x[own] = decision.options[picked].lanes
            error += decision.options[picked].counted ** 2
        found.append((model.total(x), error))
    return found


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_the_optimum_is_what_trying_everything_finds(seed: int, share: float) -> None:
    """And the planner's allocation never goes below it, nor over the budget."""
    decisions, model = instance(seed)
    tried = everything(decisions, model)
    costs = sorted(cost for cost, _ in tried)
    budget = costs[int(share * (len(costs) - 1))] * (1 + 1e-9)
    least = min(error for cost, error in tried if cost <= budget)
    found, proven = optimum(decisions, model, ROWS, budget, SHAPE, SECONDS)
    assert proven
    assert found == pytest.approx(least, rel=1e-5)
    choice, cost = allocate(decisions, model, ROWS, budget, SHAPE)
    errors = [d.options[k].counted ** 2 for d, k in zip(decisions, choice, strict=True)]
    assert cost > budget or sum(errors) >= least * (1 - 1e-9)


def test_a_budget_below_the_cheapest_choice_has_no_optimum() -> None:
    """The control: it isn't silently exceeded."""
    decisions, model = instance(0)
    cheapest = min(cost for cost, _ in everything(decisions, model))
    found, proven = optimum(decisions, model, ROWS, 0.9 * cheapest, SHAPE, SECONDS)
    assert np.isnan(found)
    assert not proven


@pytest.mark.parametrize("seed", range(5))
def test_a_slope_is_what_one_more_unit_costs(seed: int) -> None:
    """By differences of costs; of several groups it is the sum of their rows."""
    _, model = instance(seed)
    rng = np.random.default_rng(seed)
    x = rng.random(SHAPE)
    for g in range(SHAPE[0]):
        for lane in range(SHAPE[1]):
            more = x.copy()
            more[g, lane] += 1e-6
            wanted = (model.total(more) - model.total(x)) / 1e-6
            assert model.gradient(x)[g, lane] == pytest.approx(wanted, rel=1e-4)
    assert np.allclose(model.slope(x, [0, 2]), model.gradient(x)[[0, 2]].sum(0))
