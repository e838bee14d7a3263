"""Meet a budget with the network that is really emitted: plan, rewrite, count, correct."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from passes.plan import Menu, choose, merged_only, uniform
from passes.plan_published import plan_published
from passes.rewrite import Mismatch, Rewritten, rewrite
from pleas_fx.costs import CostModel, Term, count, terms
from pleas_fx.errors import BudgetError
from pleas_fx.ir import GroupId, Plan, Program, Symmetry
from pleas_fx.module_tree import discard

ROUNDS = 8
SNUG = 0.97  # share of the budget that is good enough
LOOSE = 0.9  # share below which the cost model may have missed something


@dataclass(frozen=True, slots=True)
class Budget:
    """Exactly one of these, relative to one source; widths per group are absolute choices."""

    width: float | None = None
    flops: float | None = None
    params: float | None = None
    latency: float | None = None
    widths: Mapping[GroupId, float] | None = None

    @property
    def relative(self) -> float:
        """What may be executed, stored or waited for; infinite where widths are asked for."""
        return self.flops or self.params or self.latency or math.inf


def plan_for(
    programs: Sequence[Program],
    symmetries: Sequence[Symmetry],
    menu: Menu,
    budget: Budget,
    inputs: tuple[Tensor, ...],
    *,
    heads: str,
    method: str,
) -> tuple[Plan, Rewritten]:
    """A plan within the budget, and its rewritten network.

    Raises:
        BudgetError: nothing within the method's reach meets the budget; states the range.
        Mismatch: the graph refuses such widths; names the groups.
    """
    emit = _Emitter(programs, symmetries, heads)
    if method in ("average", "permute"):
        return _fully_merged(menu, budget, emit, inputs, method)
    if budget.widths is not None or budget.width is not None:
        return _at_width(menu, budget, emit, method)
    planners = [_planner(menu, symmetries[0], programs[0], budget, method)]
    if method == "pleas" and (merged := merged_only(menu)) is not None:
        planners.append(_planner(merged, symmetries[0], programs[0], budget, method))
    measure, base = _measure(budget), _of_sources(budget, programs, inputs)
    asked = budget.flops or budget.params or budget.latency or 0.0
    if asked <= 0:
        raise BudgetError(f"a budget must be positive, {asked:g} was asked for")
    return _search(planners, emit, lambda m: measure(m, inputs) / base, asked, menu.widest)


@dataclass(frozen=True, slots=True)
class _Emitter:
    programs: Sequence[Program]
    symmetries: Sequence[Symmetry]
    heads: str

    def __call__(self, plan: Plan) -> Rewritten:
        lanes = {g.group: g.lanes for g in plan.groups}
        return rewrite(self.programs, self.symmetries, lanes, heads=self.heads)


def _fully_merged(
    menu: Menu, budget: Budget, emit: _Emitter, inputs: tuple[Tensor, ...], method: str
) -> tuple[Plan, Rewritten]:
    plan = uniform(menu, 1.0)
    result = emit(plan)
    asked = budget.width or budget.flops or budget.params or budget.latency
    if budget.widths is not None or (budget.width is not None and budget.width != 1.0):
        raise BudgetError(f"{method} merges everything: its width is 1 (1 to 1)")
    if budget.width is None:
        base = _of_sources(budget, emit.programs, inputs)
        have = _measure(budget)(result.module, inputs) / base
        if asked is None or have > asked * 1.0001:
            raise BudgetError(f"{method} needs {have:.3f} (feasible from {_up(have)} up)")
    return plan, result


def _at_width(menu: Menu, budget: Budget, emit: _Emitter, method: str) -> tuple[Plan, Rewritten]:
    asked = list(budget.widths.values()) if budget.widths is not None else [budget.width or 0.0]
    if any(not 0 < w <= menu.sources for w in asked):
        raise BudgetError(
            f"a width must be above 0 and at most {menu.sources}, "
            f"{min(asked):g} to {max(asked):g} was asked for"
        )
    if method == "pleas-paper":
        if budget.width is None:
            raise BudgetError("pleas-paper takes one width for all groups")
        plan = plan_published(menu, budget.width)
        return plan, emit(plan)
    plan = uniform(menu, budget.widths if budget.widths is not None else float(asked[0]))
    return plan, emit(plan)


Planner = Callable[[float], tuple[Plan, float]]
Measure = Callable[[nn.Module, tuple[Tensor, ...]], float]


def _measure(budget: Budget) -> Measure:
    if budget.flops is not None:
        return lambda m, x: float(count(m, x).flops)
    if budget.params is not None:
        return lambda m, x: float(count(m, x).params)
    return seconds


def _of_sources(budget: Budget, programs: Sequence[Program], inputs: tuple[Tensor, ...]) -> float:
    """What one of the sources executes, stores or takes, in the mean."""
    found = float(np.mean([_measure(budget)(p.module, inputs) for p in programs]))
    if found <= 0:
        raise BudgetError(
            "the sources have nothing that a budget could be relative to: no parameters, or none "
            "that multiply; give a width"
        )
    return found


def seconds(model: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """Median seconds of a forward pass."""
    times = []
    with torch.inference_mode():
        model(*inputs)
        for _ in range(7):
            start = time.perf_counter()
            model(*inputs)
            times.append(time.perf_counter() - start)
    return float(np.median(times))


def cost_model(menu: Menu, program: Program, symmetry: Symmetry, resource: str) -> CostModel:
    """The bilinear cost of a program's layers, relative to its own total."""
    layer_terms = terms(program, symmetry.layout)
    total = sum(getattr(t, resource) for t in layer_terms) or 1.0
    scaled = [Term(t.flops / total, t.params / total, t.makes, t.reads) for t in layer_terms]
    background = np.array([1.0] + [0.0] * menu.sources)
    ids = [g.id for g in menu.groups]
    return CostModel(scaled, ids, menu.memberships, background, resource=resource)


def _planner(
    menu: Menu, symmetry: Symmetry, program: Program, budget: Budget, method: str
) -> Planner:
    if method == "pleas-paper":
        return lambda b: (plan_published(menu, min(max(b, 1.0), float(menu.sources))), b)
    resource = "params" if budget.params is not None else "flops"
    model = cost_model(menu, program, symmetry, resource)
    return lambda b: choose(menu, model, b)


@dataclass(frozen=True, slots=True)
class _Found:
    """A plan within the budget, what it costs, and its network if that was kept."""

    plan: Plan
    have: float
    result: Rewritten | None = None


def _search(
    planners: Sequence[Planner],
    emit: _Emitter,
    measure: Callable[[nn.Module], float],
    asked: float,
    sources: int,
) -> tuple[Plan, Rewritten]:
    """The first planner's plan; where that is far below the budget, or none, the others', too.

    Costs that the planner doesn't know (of weights that are computed, say, run once for every lane)
    may stand in the way of all but plans that merge everything.
    """
    found: list[_Found] = []
    least = float("inf")
    for planner in planners:
        with suppress(Mismatch) if found else nullcontext():
            best, smallest = _bisect(planner, emit, measure, asked, sources)
            least = min(least, smallest)
            found += [best] if best else []
        if found and found[-1].have >= LOOSE * min(asked, sources):
            break
    if not found:
        raise BudgetError(f"no network meets {asked:g}: feasible from {_up(least)} to {sources}")
    chosen = min(found, key=lambda one: _error(one.plan))
    for other in found:
        if other is not chosen and other.result is not None:
            discard(other.result.module)
    return chosen.plan, chosen.result or emit(chosen.plan)


def _up(least: float) -> str:
    """Three decimals that suffice."""
    return f"{math.ceil(least * 1000 - 1e-6) / 1000:.3f}"


def _error(plan: Plan) -> float:
    """As plans are chosen by: squares."""
    return sum(group.predicted_error**2 for group in plan.groups)


def _bisect(
    planner: Planner,
    emit: _Emitter,
    measure: Callable[[nn.Module], float],
    asked: float,
    sources: int,
) -> tuple[_Found | None, float]:
    """Bisect the planner's budget until the emitted network fits snugly; the least cost seen."""
    best: _Found | None = None
    low, high = 0.0, float(sources) * 1.5
    aim = asked
    least = float("inf")
    for _ in range(ROUNDS):
        plan, _ = planner(aim)
        result = emit(plan)
        have = measure(result.module)
        least = min(least, have)
        if have <= asked * 1.000001:
            low = max(low, aim)
            if have >= SNUG * asked or have >= sources * 0.999:
                return _Found(plan, have, result), least
            if best is None or have > best.have:
                best = _Found(plan, have)
            aim = min((aim + high) / 2 if np.isfinite(high) else aim * 1.2, aim * asked / have)
        else:
            high = min(high, aim)
            aim = max((low + high) / 2 if low else 0.0, aim * asked / have * 0.995)
            if low and aim <= low:
                break
        discard(result.module)  # one network at a time
    if best is not None:
        return best, least
    plan, _ = planner(1e-6)
    result = emit(plan)
    smallest = measure(result.module)
    return (_Found(plan, smallest, result) if smallest <= asked else None), min(least, smallest)
