"""The best choice of one option a decision under a budget, by an integer program."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from pleas_fx.costs import CostModel
from pleas_fx.ir import FloatArray
from pleas_fx.options import Decision

Rows = Sequence[Sequence[int]]


def optimum(
    decisions: Sequence[Decision],
    model: CostModel,
    rows: Rows,
    budget: float,
    shape: tuple[int, int],
    seconds: float,
) -> tuple[float, bool]:
    """The least sum of squared errors within the budget, and whether that is proven.

    The cost is bilinear: a pair of options of two decisions that share a layer gets a variable of
    its own, which is tied to those of the two (the local polytope, exact where these are whole).
    """
    costs = pair_costs(decisions, model, rows, shape)
    start = np.cumsum([0, *(len(d.options) for d in decisions)])
    errors = [o.counted**2 for d in decisions for o in d.options]
    spent = [c for d in range(len(decisions)) for c in np.diag(costs[d, d])]
    entries = [
        (d, int(start[d]) + k, 1.0)
        for d, own in enumerate(decisions)
        for k in range(len(own.options))
    ]
    right = [1.0] * len(decisions)
    size = len(errors)
    for (d, e), extra in costs.items():
        if d == e or not np.abs(extra).max():
            continue
        places = size + np.arange(extra.size).reshape(extra.shape)
        for options, decision in ((places, d), (places.T, e)):
            for k, pairs in enumerate(options):
                entries += [(len(right), int(p), 1.0) for p in pairs]
                entries.append((len(right), int(start[decision]) + k, -1.0))
                right.append(0.0)
        spent += list(extra.reshape(-1))
        size += extra.size
    row, column, value = (np.array(x) for x in zip(*entries, strict=True))
    ties = coo_array((value, (row, column)), shape=(len(right), size)).tocsr()
    nothing = model.total(np.zeros(shape))
    found = milp(
        np.r_[errors, np.zeros(size - len(errors))],
        constraints=[
            LinearConstraint(ties, right, right),
            LinearConstraint(np.array(spent)[None, :], -np.inf, budget - nothing),
        ],
        integrality=np.r_[np.ones(len(errors)), np.zeros(size - len(errors))],
        bounds=Bounds(0, 1),
        options={"time_limit": seconds, "mip_rel_gap": 1e-6},
    )
    return (float(found.fun) if found.fun is not None else float("nan")), found.status == 0


def pair_costs(
    decisions: Sequence[Decision], model: CostModel, rows: Rows, shape: tuple[int, int]
) -> dict[tuple[int, int], FloatArray]:
    """[k, m]: what options k and m of two decisions cost together beyond what each costs alone.

    On the diagonal what an option costs by itself, beyond a network without any slot.
    """
    nothing = model.total(np.zeros(shape))

    def extra(*picked: tuple[int, int]) -> float:
        x = np.zeros(shape)
        for d, k in picked:
            x[list(rows[d])] = decisions[d].options[k].lanes
        return model.total(x) - nothing

    single = [[extra((d, k)) for k in range(len(own.options))] for d, own in enumerate(decisions)]
    found = {(d, d): np.diag(own) for d, own in enumerate(single)}
    for d, own in enumerate(single):
        for e in range(d + 1, len(single)):
            both = [[extra((d, k), (e, m)) for m in range(len(single[e]))] for k in range(len(own))]
            found[d, e] = np.array(both) - np.add.outer(own, single[e])
    return found
