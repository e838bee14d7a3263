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
