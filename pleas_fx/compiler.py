"""The driver: which passes run, in which order."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from torch import Tensor, nn

from passes._lockstep import Store
from passes.rewrite import Rewritten
from pleas_fx.calibration import Batches
from pleas_fx.channels_last import arranged
from pleas_fx.complement import Supply, complement
from pleas_fx.costs import count
from pleas_fx.distilling import distilled
from pleas_fx.fitting import FITTED, Fitting, targets_of
from pleas_fx.ir import Plan, Report, Symmetry
from pleas_fx.owners import attributed
from pleas_fx.planning import look, prices_of
from pleas_fx.prepare import Prepared, prepare
from pleas_fx.request import Clock, Options
from pleas_fx.settling import settle


@dataclass(frozen=True, slots=True)
class Compiled:
    """The merged network and how it came about."""

    rewritten: Rewritten
    plan: Plan
    report: Report
    symmetry: Symmetry


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
        targets = targets_of(prepared, everything, options, store)
        observed = look(prepared, everything, options, clock, targets)
        fitting = Fitting(prepared, observed, everything, options, clock, targets)
        chosen, done = settle(fitting, supply, inputs)
        trained, told = distilled(fitting, chosen, supply)
        done = trained or done
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
        warnings=(*_warnings(prepared, everything), *supply.notes, *told),
    )
    return Compiled(rewritten, plan, report, prepared.symmetries[0])


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


def _supply(
    prepared: Prepared,
    data: Batches | None,
    inputs: tuple[Tensor, ...],
    options: Options,
    clock: Clock,
) -> Supply:
    """The data, with owners, and what is made beside them, where something is fitted to them."""
    programs = prepared.programs
    if options.method not in FITTED or not prices_of(options, len(programs)):
        return Supply(_arranged(prepared, data), None)  # at full width: the exact ensemble
    told: tuple[str, ...] = ()
    if data is not None:
        with clock.time("attribute"):
            data, told = attributed(programs, data, options.heads, options.classes)
    with clock.time("synthesise"):
        beside = complement(programs, data, inputs, images=options.synthetic, seed=options.seed)
    made = _arranged(prepared, beside.made)
    return Supply(_arranged(prepared, data), made, (*told, *beside.notes), beside.blind)


def _arranged(prepared: Prepared, data: Batches | None) -> Batches | None:
    if data is None:
        return None
    return replace(data, batches=arranged(prepared.programs, data.batches))


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
