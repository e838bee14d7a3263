"""The choices a plan has: for every decision, selections with their error, and the best mix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pleas_fx.algebra.selection import Path
from pleas_fx.costs import CostModel
from pleas_fx.ir import FloatArray, GroupId

ROUNDING = 1e-9  # relative, of a sum of costs
HALVINGS = 24  # of the logarithm of a price: a millionth of it at last
MOVES = 400  # at most, to spend what is left
NO_GAIN = 1e-15  # of a squared error
STEPS = 48  # points taken from one selection path
DOUBT = 0.25  # how much more merged slots cost than predicted; docs/decisions/2026-11-28-doubt.md


@dataclass(frozen=True, slots=True)
class Option:
    """A prefix of a path (or everything apart, or everything merged) for a set of groups."""

    lanes: FloatArray  # (memberships,) relative to a source's channels
    error: float
    path: int  # which path; APART or MERGED
    length: int

    @property
    def counted(self) -> float:
        """The error as plans weigh it: more for a larger share of slots that all sources use."""
        share = self.lanes[0] / max(float(self.lanes.sum()), ROUNDING)
        return self.error * (1.0 + DOUBT * float(share))


APART, ALL_MERGED = -1, -2


@dataclass(frozen=True, slots=True)
class Decision:
    """Groups that are decided together, and their options."""

    groups: tuple[GroupId, ...]
    options: tuple[Option, ...]
    paths: tuple[Path, ...] = ()
    units: int = 0


def allocate(
    decisions: Sequence[Decision],
    model: CostModel,
    rows: Sequence[Sequence[int]],
    budget: float,
    shape: tuple[int, int],
    weights: Sequence[float] | None = None,
) -> tuple[list[int], float]:
    """Choose an option a decision: least counted error with ``model.total`` within ``budget``.

    Lagrangian coordinate descent from several starts, then greedy use of what is left. Returns
    the choices and the cost. When even the cheapest choices exceed the budget they are returned.
    ``weights``: what every decision's error is multiplied by; None: 1.
    """
    solver = _Solver(decisions, model, rows, shape, weights or [1.0] * len(decisions))
    return solver.solve(budget)


class _Solver:
    def __init__(
        self,
        decisions: Sequence[Decision],
        model: CostModel,
        rows: Sequence[Sequence[int]],
        shape: tuple[int, int],
        weights: Sequence[float],
    ) -> None:
        self.decisions, self.model, self.rows = decisions, model, rows
        self.shape = shape
        # Squares: one badly served layer spoils what all others keep (docs/decisions).
        self.errors = [
            (weight * np.array([o.counted for o in d.options])) ** 2
            for d, weight in zip(decisions, weights, strict=True)
        ]
        self.lanes = [np.stack([o.lanes for o in d.options]) for d in decisions]

    def x(self, choice: Sequence[int]) -> FloatArray:
        result = np.zeros(self.shape)
        for d, option in enumerate(choice):
            result[list(self.rows[d])] = self.lanes[d][option]
        return result

    def error(self, choice: Sequence[int]) -> float:
        return float(sum(e[c] for e, c in zip(self.errors, choice, strict=True)))

    def solve(self, budget: float) -> tuple[list[int], float]:
        budget *= 1 + ROUNDING
        apart = self._apart()
        if apart is not None and self.model.total(self.x(apart)) <= budget:
            return apart, self.model.total(self.x(apart))
        best: list[int] | None = None
        for start in self._starts():
            found = self._bisect(start, budget)
            if found is not None and (best is None or self.error(found) < self.error(best)):
                best = found
        if best is None:
            best = self._cheapest()
            return best, self.model.total(self.x(best))
        best = self._fill(best, budget)
        return best, self.model.total(self.x(best))

    def _apart(self) -> list[int] | None:
        """Nothing dropped, where that is a choice: from few examples dropping looks free."""
        own = [[k for k, o in enumerate(d.options) if o.path == APART] for d in self.decisions]
        return [k[0] for k in own] if all(own) else None

    def _cheapest(self) -> list[int]:
        """Costs alone: descents end in different places, since they are bilinear in the widths."""
        starts = [*self._starts(), *self._starts(shortest=True)]
        found = [self._descend(start, 1e12) for start in starts]
        return min(found, key=lambda choice: self.model.total(self.x(choice)))

    def _starts(self, *, shortest: bool = False) -> list[list[int]]:
        """All merged, nothing merged, and the middle (or the first option) of every path."""
        kinds = sorted({o.path for d in self.decisions for o in d.options})
        at = 0.0 if shortest else 0.5
        return [[self._typical(d, kind, at) for d in self.decisions] for kind in kinds]

    def _typical(self, decision: Decision, kind: int, at: float) -> int:
        own = [k for k, o in enumerate(decision.options) if o.path == kind]
        return own[int(len(own) * at)] if own else 0

    def _bisect(self, start: list[int], budget: float) -> list[int] | None:
        low, high = 1e-9, 1e6
        scale = max(self.model.total(self.x(start)), 1e-300)
        best: list[int] | None = None
        for _ in range(HALVINGS):
            middle = float(np.sqrt(low * high))
            choice = self._descend(start, middle / scale)
            if self.model.total(self.x(choice)) <= budget:
                high = middle
                if best is None or self.error(choice) < self.error(best):
                    best = choice
            else:
                low = middle
        return best

    def _descend(self, start: Sequence[int], price: float) -> list[int]:
        choice = list(start)
        x = self.x(choice)
        for _ in range(8):
            before = list(choice)
            for d in range(len(self.decisions)):
                if len(self.errors[d]) == 1:
                    continue
                slope = self.model.slope(x, self.rows[d])
                choice[d] = int(np.argmin(self.errors[d] + price * (self.lanes[d] @ slope)))
                x[list(self.rows[d])] = self.lanes[d][choice[d]]
            if choice == before:
                break
        return choice

    def _fill(self, choice: list[int], budget: float) -> list[int]:
        """Spend what is left: where it removes most error per cost, then on channels that it keeps.

        From few examples many channels look free to drop, and true errors are larger.
        """
        choice = list(choice)
        tried = [np.zeros(len(e), bool) for e in self.errors]  # widths multiply: they cost too much
        for _ in range(MOVES):
            x = self.x(choice)
            slack = budget - self.model.total(x)
            move = self._best_move(choice, self.model.gradient(x), slack, tried)
            if move is None:
                break
            d, option = move
            changed = [*choice[:d], option, *choice[d + 1 :]]
            if self.model.total(self.x(changed)) <= budget:
                choice = changed
            else:
                tried[d][option] = True
        return choice

    def _best_move(
        self,
        choice: Sequence[int],
        slope: FloatArray,
        slack: float,
        tried: Sequence[npt.NDArray[np.bool_]],
    ) -> tuple[int, int] | None:
        best, score = None, (0.0, 0.0)
        for d, rows in enumerate(self.rows):
            gain = self.errors[d][choice[d]] - self.errors[d]
            extra = (self.lanes[d] - self.lanes[d][choice[d]]) @ slope[list(rows)].sum(0)
            wider = self.lanes[d].sum(1) - self.lanes[d][choice[d]].sum()
            fits = (extra <= slack) & ~tried[d] & (gain >= 0)
            ratio = np.where(fits & (gain > NO_GAIN), gain / np.maximum(extra, 1e-12), 0.0)
            k = int(np.argmax(ratio))
            if ratio[k] == 0:
                wider = np.where(fits & (wider > 0), wider, 0.0)
                k = int(np.argmax(wider))
            found = (float(ratio[k]), float(wider[k]))
            if found > score:
                best, score = (d, k), found
        return best
