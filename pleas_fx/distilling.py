"""Train the merged network on, where that is asked for."""

from __future__ import annotations

from dataclasses import replace

from passes.distil import Distilled, distil
from passes.recalibrate import restate
from passes.rewrite import Rewritten
from pleas_fx.calibration import Batches
from pleas_fx.candidates import Candidate
from pleas_fx.complement import Supply, combined
from pleas_fx.contest import FEWEST
from pleas_fx.fitting import FITTED, Fitting, Outcome, settings_of
from pleas_fx.planning import prices_of

HELD = 8  # one example in so many is held out


def distilled(
    fitting: Fitting, candidate: Candidate, supply: Supply
) -> tuple[Outcome | None, tuple[str, ...]]:
    """A copy of the candidate, fitted and trained, if that is asked for and pays; what to tell.

    Neither is done on the images that the network before and after is compared on.
    """
    options = fitting.options
    if options.distil == 0:
        return None, ()
    reason = _hindrance(fitting, supply)
    if reason is not None or supply.data is None:
        return None, (f"not distilled: {reason}",)
    rest, held = held_out(supply.data)
    own = replace(fitting, data=combined(rest, supply.made), targets=None)
    outcome = own.outcome(candidate)
    try:
        with fitting.clock.time("distil"):
            found = _trained(fitting, outcome, rest, held)
    except RuntimeError as error:  # torch can't differentiate it
        return None, (f"not distilled: {str(error).partition(chr(10))[0]}",)
    if found.steps == 0:
        return None, (
            f"not distilled: in {options.distil} steps nothing was won on images held out",
        )
    return outcome, (
        f"distilled: after {found.steps} steps {found.after:.3g} is left on {held.examples} images "
        f"held out, of {found.before:.3g} before",
    )


def _hindrance(fitting: Fitting, supply: Supply) -> str | None:
    options = fitting.options
    if supply.data is None or supply.blind:
        return "there are no images of the sources' kind"
    if options.method in FITTED and not prices_of(options, len(fitting.prepared.programs)):
        return "at full width the network is the exact ensemble"
    if supply.data.examples < FEWEST * len(fitting.prepared.programs):
        return f"fewer than {FEWEST} images a source don't tell whether anything is won"
    return None


def _trained(fitting: Fitting, outcome: Outcome, rest: Batches, held: Batches) -> Distilled:
    """In place, on ``rest``."""
    options, clock = fitting.options, fitting.clock

    def tick(step: int) -> None:
        clock.report(f"distil {step}/{options.distil}")

    network = _taught(outcome)
    found = distil(
        fitting.prepared.programs,
        network,
        (*rest.batches, *held.batches),
        range(len(rest.batches), len(rest.batches) + len(held.batches)),
        settings_of(fitting.prepared, (*rest.owners, *held.owners), options),
        options.distil,
        tick=tick,
    )
    if found.steps:
        restate(network.module, rest.batches)
    return found


def held_out(data: Batches) -> tuple[Batches, Batches]:
    """What is trained on, and what isn't: one example in eight, of every owner."""
    largest = max(len(batch[0]) for batch in data.batches)
    joined = data.joined(max(largest, HELD))
    return joined.others(HELD), joined.every(HELD)


def _taught(outcome: Outcome) -> Rewritten:
    """The network, with the outputs that all sources teach."""
    taught = {site.emitted: site for site in outcome.candidate.taught}
    network = outcome.network
    return replace(network, sites=tuple(taught.get(s.emitted, s) for s in network.sites))
