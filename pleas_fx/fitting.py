"""What each method fits, and to what."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from passes._answers import answering
from passes._lockstep import Store
from passes._rows import Settings
from passes._targets import Targets
from passes.fit import Fitted, fit
from passes.fit_published import fit_published
from passes.recalibrate import recalibrate
from passes.rewrite import Rewritten
from pleas_fx.calibration import Batches
from pleas_fx.candidates import Candidate, copied
from pleas_fx.contest import FOLDS, IMAGES
from pleas_fx.data_free import correct
from pleas_fx.heads import head_nodes, output_groups
from pleas_fx.ir import Matching
from pleas_fx.planning import Observed
from pleas_fx.prepare import Prepared
from pleas_fx.request import Clock, Options

FITTED = ("pleas", "side-by-side")  # by passes/fit
UNFITTED = Fitted((), 0, math.nan)


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
            return fit_network(
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
        targets = targets_of(self.prepared, some, self.options, store)
        return replace(self, data=some, targets=targets, folds=FOLDS)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A candidate, and what fitting a copy of it gave."""

    candidate: Candidate
    network: Rewritten
    fitted: Fitted


def fit_network(
    prepared: Prepared,
    rewritten: Rewritten,
    matching: Matching,
    data: Batches | None,
    options: Options,
    targets: Targets | None = None,
    folds: int = 1,
) -> Fitted:
    """Fit a network in place, as its method does."""
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
    settings = replace(settings_of(prepared, data.owners, options), folds=folds)
    return fit(prepared.programs, rewritten, data.batches, settings, targets=targets)


def targets_of(
    prepared: Prepared, data: Batches | None, options: Options, store: Store
) -> Targets | None:
    """For samples of what the sources make, where layers will be fitted to it."""
    if data is None or options.method not in FITTED:
        return None
    sources = len(prepared.programs)
    widest = min(options.budget.width or sources, sources)
    sampling = settings_of(prepared, data.owners, options).sampling(widest)
    return Targets(prepared.programs[0], sampling, store)


def settings_of(prepared: Prepared, owners: tuple[int | None, ...], options: Options) -> Settings:
    """How layers are fitted to batches of these owners."""
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
