"""What to take: the plan of all sources, one with other emphasis, or the layers of some sources."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace

from torch import Tensor

from passes._lockstep import Store
from passes.observe import planned_groups
from passes.plan import Menu
from passes.rewrite import Rewritten
from pleas_fx.calibration import Batches
from pleas_fx.candidates import Candidate, choose, safest, split
from pleas_fx.complement import Supply
from pleas_fx.contest import FEWEST, Emphasis, affordable, contest
from pleas_fx.costs import count
from pleas_fx.errors import PleasError
from pleas_fx.fitting import Fitting, Outcome, fit_network, targets_of
from pleas_fx.heads import output_groups
from pleas_fx.ir import GroupId, joint, letters
from pleas_fx.planning import decide
from pleas_fx.prepare import Prepared
from pleas_fx.request import Options
from pleas_fx.taught import taught_by_all


def settle(
    fitting: Fitting, supply: Supply, inputs: tuple[Tensor, ...]
) -> tuple[Candidate, Outcome | None]:
    """What to take: the best plan of all sources, or of some where that is judged to be better.

    The plan of all sources may have been fitted on the way; else there is no outcome.
    """
    prepared, options = fitting.prepared, fitting.options
    planned = decide(prepared, fitting.observed, inputs, options, fitting.clock)
    everyone = Candidate("all sources", planned)
    trials = _trials(prepared, supply.data, inputs, options)
    blind = _blind(supply, options)
    if blind or trials is None:
        chosen = judged(everyone, fitting, supply, inputs)
        if trials is None or chosen is not everyone:
            return chosen, None
    done = contested(everyone, fitting, inputs, trials)
    chosen = done.candidate if blind else judged(done.candidate, fitting, supply, inputs)
    same = chosen.planned[1] is done.candidate.planned[1]
    return chosen, done if same else None


def _blind(supply: Supply, options: Options) -> bool:
    """Nothing tells plans apart, and a source as it is may be had."""
    return supply.blind and options.budget.relative <= 1.0


def judged(
    everyone: Candidate, fitting: Fitting, supply: Supply, inputs: tuple[Tensor, ...]
) -> Candidate:
    """``everyone``, or some sources where that is better.

    Widths ask for slots of every group, so all sources take part. What is made beside the data
    judges only where there are no data. Blind and at a source's cost or less, one source is taken.
    """
    prepared, observed = fitting.prepared, fitting.observed
    options, clock = fitting.options, fitting.clock
    judging, made = (supply.data, supply.made) if supply.data is not None else (supply.made, None)
    if judging is None or not options.contests(len(prepared.programs)):
        return everyone
    if not _same_outputs(prepared):
        return everyone
    outputs = output_groups(prepared.programs[0], prepared.symmetries[0])

    def of_some(kept: Sequence[int]) -> Candidate:
        plan, rewritten = decide(prepared, observed, inputs, options, clock, kept=kept)
        whole = len(kept) == 1 and not any(group.dropped[kept[0]] for group in plan.groups)
        taught = taught_by_all(rewritten, outputs)
        title = f"source{'s' if len(kept) > 1 else ''} {letters(joint(kept))} alone"
        return Candidate(title, (plan, rewritten), taught, whole)

    with ExitStack() as stores:

        def fit_on(images: Batches) -> Callable[[Rewritten], object]:
            targets = targets_of(prepared, images, options, stores.enter_context(closing(Store())))

            def fitted(rewritten: Rewritten) -> object:
                with clock.time("judge"):
                    return fit_network(
                        prepared, rewritten, observed.matching, images, options, targets
                    )

            return fitted

        pick = safest if _blind(supply, options) else choose
        halves = split(prepared.programs, judging, fit_on, made)
        return pick(len(prepared.programs), everyone, of_some, halves)


def contested(
    first: Candidate, fitting: Fitting, inputs: tuple[Tensor, ...], trials: int
) -> Outcome:
    """What leaves least: ``first``, or a plan with other emphasis."""
    with closing(Store()) as store:
        some = fitting.on_some(store) if trials else fitting
        plans = Trials(first, fitting, some, inputs, {})
        best = contest(
            some.outcome(first),
            len(fitting.prepared.programs),
            plans.groups,
            plans.attempt,
            lambda found: found.fitted.left,
            seed=fitting.options.seed,
            trials=trials,
        )
    return best if some is fitting else fitting.outcome(best.candidate)


@dataclass(frozen=True, slots=True)
class Trials:
    """What a contest of plans takes: ``some`` images to fit to, and menus to choose from."""

    first: Candidate
    fitting: Fitting
    some: Fitting
    inputs: tuple[Tensor, ...]
    menus: dict[tuple[float, ...], Menu]

    @property
    def groups(self) -> list[GroupId]:
        """Those that a plan decides about."""
        prepared = self.fitting.prepared
        found = planned_groups(prepared.symmetries[0])
        return [g.id for g in found if g.id not in prepared.given]

    def attempt(self, emphasis: Emphasis) -> Outcome | None:
        """With another plan; None where this graph, or this budget, leaves no such network."""
        own = self.fitting
        try:
            plan, rewritten = decide(
                own.prepared,
                own.observed,
                self.inputs,
                own.options,
                own.clock,
                emphasis=emphasis,
                menus=self.menus,
            )
        except PleasError:
            return None
        planned = replace(plan, note=str(emphasis)), rewritten
        return self.some.outcome(replace(self.first, planned=planned))


def _trials(
    prepared: Prepared, data: Batches | None, inputs: tuple[Tensor, ...], options: Options
) -> int | None:
    """How many weights of groups are tried, besides those of sources; None: no other plan at all.

    Each costs a plan and a fit, and true images have to tell which one is best.
    """
    sources = len(prepared.programs)
    if data is None or options.trials == 0 or not options.contests(sources):
        return None
    if options.trials is not None:
        return options.trials if data.examples >= FEWEST * sources else 0
    flops = sum(count(p.module, inputs).flops for p in prepared.programs)
    widths = [g.size for g in planned_groups(prepared.symmetries[0])]
    return 0 if affordable(flops, data.examples, widths) else None


def _same_outputs(prepared: Prepared) -> bool:
    """Whether every output stands for the same one of every source; nobody knows without labels."""
    outputs = output_groups(prepared.programs[0], prepared.symmetries[0])
    lanes = [lane for group in outputs for lane in prepared.given[group]]
    return bool(lanes) and all((lane.channels == lane.channels[:, :1]).all() for lane in lanes)
