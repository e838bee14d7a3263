"""What a plan chooses where options cost the same: errors, and how merged slots count in them."""

from __future__ import annotations

import numpy as np
import pytest

from pleas_fx.costs import CostModel, Term
from pleas_fx.ir import GroupId, Membership
from pleas_fx.options import DOUBT, Decision, Option, allocate

GROUP = GroupId(0)
MERGED, APART = np.array([1.0, 0.0, 0.0]), np.array([0.0, 0.5, 0.5])


def chosen(*options: Option) -> int:
    """Under a budget that holds any of them."""
    terms = [Term(1.0, 1.0, {GROUP: 1.0}, None)]
    memberships = [Membership(m) for m in (3, 1, 2)]
    model = CostModel(terms, [GROUP], memberships, MERGED, resource="flops")
    (choice,), cost = allocate([Decision((GROUP,), options)], model, [[0]], 9.0, (1, 3))
    assert cost < 9.0
    return choice


def option(lanes: np.ndarray, error: float) -> Option:
    """On a path of its own."""
    return Option(lanes, error, path=int(lanes[0] > 0), length=1)


@pytest.mark.parametrize(("less", "taken"), [(0.9, 0), (1.1, 1)])
def test_merging_has_to_be_better_by_what_is_doubted_of_it(less: float, taken: int) -> None:
    """Slots that all sources use are predicted too well; a little more, and they are taken."""
    assert chosen(option(APART, 1 + less * DOUBT), option(MERGED, 1.0)) == taken


def test_a_merge_without_error_is_beyond_doubt() -> None:
    """Permuted copies are merged whatever merged slots count."""
    assert chosen(option(APART, 0.0001), option(MERGED, 0.0)) == 1


def test_half_of_the_doubt_for_half_of_the_slots() -> None:
    """Slots of one source aren't doubted."""
    mixed = Option(np.array([0.5, 0.25, 0.25]), 1.0, path=0, length=1)
    assert mixed.counted == pytest.approx(1 + DOUBT / 2)
    assert option(APART, 1.0).counted == 1.0


def widths(*errors: float) -> tuple[Option, ...]:
    """One option as wide as a source, the next twice, and so on, along one path."""
    lanes = [np.array([0.0, k, 0.0]) for k in range(1, len(errors) + 1)]
    return tuple(Option(own, e, path=0, length=1) for own, e in zip(lanes, errors, strict=True))


def spent(decisions: list[Decision], terms: list[Term], budget: float) -> tuple[list[int], float]:
    """Of groups that no other is beside."""
    ids = [g for d in decisions for g in d.groups]
    model = CostModel(terms, ids, [Membership(m) for m in (3, 1, 2)], MERGED, resource="flops")
    rows = [[ids.index(g) for g in d.groups] for d in decisions]
    return allocate(decisions, model, rows, budget, (len(ids), 3))


def test_a_move_that_costs_too_much_leaves_the_budget_to_others() -> None:
    """Two widths that multiply look cheaper than they are: the third group's is taken instead."""
    one, two, other = map(GroupId, range(3))
    terms = [Term(1.0, 1.0, {one: 1.0}, {two: 1.0}), Term(1.0, 1.0, {other: 1.0}, None)]
    decisions = [Decision((one, two), widths(3.0, 0.0)), Decision((other,), widths(1.0, 0.0))]
    assert spent(decisions, terms, 4.5) == ([0, 1], 3.0)
    assert spent(decisions, terms, 5.0) == ([1, 0], 5.0)
    assert spent(decisions, terms, 2.5) == ([0, 0], 2.0)


def test_where_no_error_is_left_the_budget_goes_to_more_channels() -> None:
    """From few examples dropping looks free; it isn't."""
    terms = [Term(1.0, 1.0, {GROUP: 1.0}, None)]
    for budget, cost in ((1.5, 1.0), (2.5, 2.0), (9.0, 3.0)):
        assert spent([Decision((GROUP,), widths(0.0, 0.0, 0.0))], terms, budget)[1] == cost
