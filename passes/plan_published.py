"""The published way to plan: merge the most similar pairs, keep all others apart (a baseline)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from passes.plan import Menu, plan_of_lanes
from pleas_fx.errors import BudgetError
from pleas_fx.ir import FloatArray, GroupId, Lane, Plan
from pleas_fx.lanes import lane_of
from pleas_fx.options import ALL_MERGED, Decision


@dataclass(frozen=True, slots=True)
class PlanPublished:
    """Options of the pass."""

    name: str = "plan_published"

    def run(self, menu: Menu, width: float) -> Plan:
        return plan_published(menu, width)


def plan_published(menu: Menu, width: float) -> Plan:
    """Every group at ``width``: slots by falling similarity merged, the rest kept for everybody.

    Raises:
        BudgetError: a width below 1; the method drops nothing.
    """
    if not 1.0 <= width <= menu.sources:
        raise BudgetError(
            f"this method reaches widths from 1 to {menu.sources}, {width:g} was asked for"
        )
    share = (menu.sources - width) / (menu.sources - 1)
    lanes: dict[GroupId, tuple[Lane, ...]] = dict(menu.outputs)
    for decision in menu.decisions:
        if not decision.groups or decision.groups[0] in menu.outputs:
            continue
        lanes.update(_decide(menu, decision, share))
    return plan_of_lanes(menu, lanes)


def _decide(menu: Menu, decision: Decision, share: float) -> dict[GroupId, tuple[Lane, ...]]:
    units = decision.units
    whole = units == 0 or share >= 1.0
    lanes = {}
    order, merged = np.zeros(0, np.int64), 0
    if not whole:
        order = np.argsort(-_unit_similarity(menu, decision), kind="stable")
        merged = round(units * share)
    for group in decision.groups:
        partner = menu.matching.partner[group]
        size = partner.shape[1]
        if whole:
            keep = share > 0 or all(o.path == ALL_MERGED for o in decision.options)
            chosen = np.arange(size) if keep else np.zeros(0, np.int64)
        else:
            inner = size // units
            chosen = (np.sort(order[:merged])[:, None] * inner + np.arange(inner)).reshape(-1)
        rest = np.setdiff1d(np.arange(size), chosen)
        if len(rest) == 1:
            chosen, rest = np.arange(size), rest[:0]
        if len(chosen) == 1:
            chosen, rest = chosen[:0], np.arange(size)
        parts = [(menu.memberships[0], chosen)]
        parts += [(membership, rest) for membership in menu.memberships[1:]]
        lanes[group] = tuple(
            lane_of(membership, partner[:, slots], menu.sources)
            for membership, slots in parts
            if len(slots)
        )
    return lanes


def _unit_similarity(menu: Menu, decision: Decision) -> FloatArray:
    total = np.zeros(decision.units)
    for group in decision.groups:
        total += menu.matching.similarity[group].reshape(decision.units, -1).mean(1)
    return total
