"""The driver: which passes run, in which order, and what each method puts in their place."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace

from torch import Tensor, nn

from passes._answers import answering
from passes._lockstep import Store
from passes._rows import Settings
from passes._targets import Targets
from passes.fit import Fitted, fit
from passes.fit_published import fit_published
from passes.match import identity_matching, match_activations, match_weights
from passes.observe import Statistics, in_order, observe, planned_groups, unseen
from passes.plan import ALL_APART, MERGED_ONLY, PRICES, SINGLES_ONLY, Constraints, Menu, menu
from passes.probe import joined
from passes.recalibrate import recalibrate
from passes.rewrite import Mismatch, Rewritten
from pleas_fx.budget import plan_for
from pleas_fx.calibration import Batches
from pleas_fx.candidates import Candidate, choose, copied, safest, split
from pleas_fx.channels_last import arranged
from pleas_fx.complement import Supply, complement
from pleas_fx.contest import FEWEST, FOLDS, IMAGES, Emphasis, affordable, contest
from pleas_fx.costs import count
from pleas_fx.data_free import correct
from pleas_fx.errors import PleasError
from pleas_fx.heads import head_nodes, in_matched_order, output_groups
from pleas_fx.ir import GroupId, Matching, Plan, Report, Symmetry, joint, letters
from pleas_fx.owners import attributed
from pleas_fx.prepare import Prepared, prepare, refusals
from pleas_fx.request import Clock, Options
from pleas_fx.taught import taught_by_all

METHODS = ("pleas", "average", "permute", "pleas-paper", "side-by-side")
FITTED = ("pleas", "side-by-side")  # by passes/fit
UNFITTED = Fitted((), 0, math.nan)
ONCE = Emphasis()


@dataclass(frozen=True, slots=True)
class Compiled:
    """The merged network and how it came about."""

    rewritten: Rewritten
    plan: Plan
    report: Report
    symmetry: Symmetry


@dataclass(frozen=True, slots=True)
class Observed:
    """What the data say; any number of budgets can be planned from it."""

    statistics: Statistics | None
    matching: Matching


def _arranged(prepared: Prepared, data: Batches | None) -> Batches | None:
    if data is None:
        return None
    return replace(data, batches=arranged(prepared.programs, data.batches))


def _supply(
    prepared: Prepared,
    data: Batches | None,
    inputs: tuple[Tensor, ...],
    options: Options,
    clock: Clock,
) -> Supply:
    """The data, with owners, and what is made beside them, where something is fitted to them."""
    programs = prepared.programs
    if options.method not in FITTED or not _prices(options, len(programs)):
        return Supply(_arranged(prepared, data), None)  # at full width: the exact ensemble
    told: tuple[str, ...] = ()
    if data is not None:
        with clock.time("attribute"):
            data, told = attributed(programs, data, options.heads, options.classes)
    with clock.time("synthesise"):
        beside = complement(programs, data, inputs, images=options.synthetic, seed=options.seed)
    made = _arranged(prepared, beside.made)
    return Supply(_arranged(prepared, data), made, (*told, *beside.notes), beside.blind)


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
    if not _prices(options, len(prepared.programs)):
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


def plan_only(
    models: Sequence[nn.Module],
    inputs: tuple[Tensor, ...],
    data: Batches | None,
    options: Options,
    clock: Clock,
) -> Plan:
    """The plan of a merge; only candidates that have to be judged are fitted for it."""
    prepared = prepare(models, inputs, options, clock)
    supply = _supply(prepared, data, inputs, options, clock)
    everything = supply.everything
    observed = look(prepared, everything, options, clock)
    fitting = Fitting(prepared, observed, everything, options, clock)
    return settle(fitting, supply, inputs)[0].planned[0]


MENUS = {
    "pleas": PRICES,
    "side-by-side": SINGLES_ONLY,
    "pleas-paper": (*SINGLES_ONLY, *MERGED_ONLY),
    "average": MERGED_ONLY,
    "permute": MERGED_ONLY,
}


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
                prices=_prices(options, len(prepared.programs)),
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


def _prices(options: Options, sources: int) -> tuple[tuple[float, float], ...]:
    """What a method chooses from; at full width there is nothing to choose."""
    prices = MENUS[options.method]
    full = options.budget.width is not None and options.budget.width >= sources
    return ALL_APART if full and any(math.isfinite(s) for _, s in prices) else prices


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
    if trials is None:
        return judged(everyone, fitting, supply, inputs), None
    done = contested(everyone, fitting, inputs, trials)
    chosen = judged(done.candidate, fitting, supply, inputs)
    same = chosen.planned[1] is done.candidate.planned[1]
    return chosen, done if same else None


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
            targets = _targets(prepared, images, options, stores.enter_context(closing(Store())))

            def fitted(rewritten: Rewritten) -> object:
                with clock.time("judge"):
                    return _fit(prepared, rewritten, observed.matching, images, options, targets)

            return fitted

        pick = safest if supply.blind and options.budget.relative <= 1.0 else choose
        halves = split(prepared.programs, judging, fit_on, made)
        return pick(len(prepared.programs), everyone, of_some, halves)


@dataclass(frozen=True, slots=True)
class Fitting:
    """Everything that fitting a candidate takes, but the candidate."""

    prepared: Prepared
    observed: Observed
    data: Batches | None
    options: Options
    clock: Clock
    targets: Targets | None = None
    folds: int = 1

    def run(self, candidate: Candidate) -> Fitted:
        """In place."""
        fitted = self._fit(candidate.planned[1])
        if candidate.taught:
            fitted = fitted.then(self._fit(candidate.teaching))
        return fitted

    def outcome(self, candidate: Candidate) -> Outcome:
        """Of a copy."""
        network = copied(candidate)
        return Outcome(candidate, network.planned[1], self.run(network))

    def _fit(self, rewritten: Rewritten) -> Fitted:
        with self.clock.time("fit"):
            return _fit(
                self.prepared,
                rewritten,
                self.observed.matching,
                self.data,
                self.options,
                self.targets,
                folds=self.folds,
            )

    def on_some(self, store: Store) -> Fitting:
        """The same, on as many images as tell many plans apart, judged by unseen ones."""
        assert self.data is not None
        step = self.data.examples // (IMAGES * len(self.prepared.programs))
        if step < 2:
            return replace(self, folds=FOLDS)
        some = self.data.every(step).joined(IMAGES)
        targets = _targets(self.prepared, some, self.options, store)
        return replace(self, data=some, targets=targets, folds=FOLDS)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A candidate, and what fitting a copy of it gave."""

    candidate: Candidate
    network: Rewritten
    fitted: Fitted


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


def compile_models(
    models: Sequence[nn.Module],
    inputs: tuple[Tensor, ...],
    data: Batches | None,
    options: Options,
    clock: Clock,
) -> Compiled:
    """All passes in order: trace, groups, observe, match, plan, rewrite, judge, fit."""
    prepared = prepare(models, inputs, options, clock)
    supply = _supply(prepared, data, inputs, options, clock)
    everything = supply.everything
    with closing(Store()) as store:
        targets = _targets(prepared, everything, options, store)
        observed = look(prepared, everything, options, clock, targets)
        fitting = Fitting(prepared, observed, everything, options, clock, targets)
        chosen, done = settle(fitting, supply, inputs)
        plan, rewritten = chosen.planned
        if done is not None:
            rewritten, fitted = done.network, done.fitted
        else:
            fitted = fitting.run(chosen)
    rewritten.module.requires_grad_(True)
    report = Report(
        layers=fitted.layers,
        sources=tuple(count(p.module, inputs) for p in prepared.programs),
        merged=count(rewritten.module, inputs),
        seconds=dict(clock.seconds),
        peak_bytes=fitted.peak_bytes,
        warnings=(*_warnings(prepared, everything), *supply.notes),
    )
    return Compiled(rewritten, plan, report, prepared.symmetries[0])


def _targets(
    prepared: Prepared, data: Batches | None, options: Options, store: Store
) -> Targets | None:
    """For samples of what the sources make, where layers will be fitted to it."""
    if data is None or options.method not in FITTED:
        return None
    sources = len(prepared.programs)
    widest = min(options.budget.width or sources, sources)
    sampling = _settings(prepared, data.owners, options).sampling(widest)
    return Targets(prepared.programs[0], sampling, store)


def _settings(prepared: Prepared, owners: tuple[int | None, ...], options: Options) -> Settings:
    program = prepared.programs[0]
    outputs = output_groups(program, prepared.symmetries[0])
    heads = head_nodes(program, prepared.symmetries[0], outputs)
    return Settings(
        ridge=options.ridge,
        rows_per_unknown=options.rows_per_unknown,
        seed=options.seed,
        owners=owners,
        heads=heads,
        answering=answering(program, heads),
    )


def _fit(
    prepared: Prepared,
    rewritten: Rewritten,
    matching: Matching,
    data: Batches | None,
    options: Options,
    targets: Targets | None = None,
    folds: int = 1,
) -> Fitted:
    if options.method == "average":
        return UNFITTED
    if data is None:
        correct(prepared.programs, rewritten, matching)
        return UNFITTED
    if options.method == "permute":
        recalibrate(rewritten.module, data.batches)
        return UNFITTED
    if options.method == "pleas-paper":
        layers = fit_published(
            prepared.programs,
            rewritten,
            data.batches,
            options.ridge,
            options.rows_per_unknown,
            options.seed,
        )
        return Fitted(layers, 0, math.nan)
    settings = replace(_settings(prepared, data.owners, options), folds=folds)
    return fit(prepared.programs, rewritten, data.batches, settings, targets=targets)


def _warnings(prepared: Prepared, data: Batches | None) -> tuple[str, ...]:
    found = [*prepared.notes]
    certificate = prepared.symmetries[0].certificate
    if certificate.culprits:
        found.append(f"{len(certificate.culprits)} groups failed their certificate and stay fixed")
    if prepared.whole:
        stuck = {g for w in prepared.whole for g in w}
        found.append(f"{len(stuck)} groups are all merged or all apart: the graph fixes their size")
    if data is None:
        found.append("no calibration data: weights are averages, nothing was fitted")
    return tuple(found)
