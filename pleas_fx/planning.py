"""From statistics to a plan: what each method chooses from, and what fits a budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from passes._targets import Targets
from passes.match import identity_matching, match_activations, match_weights
from passes.observe import Statistics, in_order, observe, unseen
from passes.plan import ALL_APART, MERGED_ONLY, PRICES, SINGLES_ONLY, Constraints, Menu, menu
from passes.probe import joined
from passes.rewrite import Mismatch, Rewritten
from pleas_fx.budget import plan_for
from pleas_fx.calibration import Batches
from pleas_fx.contest import Emphasis
from pleas_fx.heads import in_matched_order
from pleas_fx.ir import Matching, Plan
from pleas_fx.prepare import Prepared, refusals
from pleas_fx.request import Clock, Options

METHODS = ("pleas", "average", "permute", "pleas-paper", "side-by-side")
ONCE = Emphasis()

MENUS = {
    "pleas": PRICES,
    "side-by-side": SINGLES_ONLY,
    "pleas-paper": (*SINGLES_ONLY, *MERGED_ONLY),
    "average": MERGED_ONLY,
    "permute": MERGED_ONLY,
}


@dataclass(frozen=True, slots=True)
class Observed:
    """What the data say; any number of budgets can be planned from it."""

    statistics: Statistics | None
    matching: Matching


def look(
    prepared: Prepared,
    data: Batches | None,
    options: Options,
    clock: Clock,
    targets: Targets | None = None,
) -> Observed:
    """Statistics of the sources on the data, and the matching of their channels.

    ``targets`` see the same run of the sources. Where nothing is chosen, nothing is looked for.
    """
    statistics = None
    if not prices_of(options, len(prepared.programs)):
        return Observed(None, identity_matching(prepared.symmetries[0], len(prepared.programs)))
    if data is not None and options.method != "average":
        see, order = (unseen, in_order) if targets is None else (targets.see, targets.order)
        with clock.time("observe"):
            sources = prepared.programs, prepared.symmetries
            statistics = observe(*sources, data.batches, seed=options.seed, see=see, order=order)
    with clock.time("match"):
        matching = _matching(prepared, statistics, options)
    return Observed(statistics and statistics.for_planning(), matching)


def _matching(prepared: Prepared, statistics: Statistics | None, options: Options) -> Matching:
    if options.method == "average":
        return identity_matching(prepared.symmetries[0], len(prepared.programs))
    if statistics is None:
        return match_weights(prepared.programs, prepared.symmetries[0])
    return match_activations(prepared.programs, prepared.symmetries[0], statistics)


def decide(
    prepared: Prepared,
    observed: Observed,
    inputs: tuple[Tensor, ...],
    options: Options,
    clock: Clock,
    *,
    kept: Sequence[int] | None = None,
    emphasis: Emphasis = ONCE,
    menus: dict[tuple[float, ...], Menu] | None = None,
) -> tuple[Plan, Rewritten]:
    """A plan within the budget and the network it gives; ``kept``: of some sources only.

    Where the graph refuses a plan, the groups at that place become whole and planning repeats.
    ``menus``: of earlier plans from the same statistics, by the emphasis on sources; added to.
    """
    menus = {} if menus is None else menus
    whole, choices = prepared.whole, menus.get(emphasis.sources)
    given = in_matched_order(prepared.given, prepared.symmetries[0], observed.matching)
    while True:
        with clock.time("plan"):
            choices = menu(
                prepared.programs,
                prepared.symmetries,
                observed.statistics,
                observed.matching,
                Constraints(whole, given),
                prices=prices_of(options, len(prepared.programs)),
                widest=options.budget.width or math.inf,
                known=choices,
                kept=kept,
                emphasis=emphasis.sources,
            )
            menus[emphasis.sources] = choices
            try:
                return plan_for(
                    prepared.programs,
                    prepared.symmetries,
                    replace(choices, weights=emphasis.groups),
                    options.budget,
                    inputs,
                    heads=options.heads,
                    method=options.method,
                )
            except Mismatch as refusal:
                with refusals(options.heads):
                    whole = joined(whole, refusal, given)


def prices_of(options: Options, sources: int) -> tuple[tuple[float, float], ...]:
    """What a method chooses from; at full width there is nothing to choose."""
    prices = MENUS[options.method]
    full = options.budget.width is not None and options.budget.width >= sources
    return ALL_APART if full and any(math.isfinite(s) for _, s in prices) else prices
