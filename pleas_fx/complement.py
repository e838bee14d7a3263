"""Calibration data that are missing, few, or of another kind, and what is made to go with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from passes.synthesise import STEPS, divergence, feasible, synthesise
from pleas_fx.calibration import Batches
from pleas_fx.costs import count
from pleas_fx.ir import Program
from pleas_fx.shortage import shortage

FOREIGN = 0.05  # divergence: ten times that of a few images of the training data
LOOKED_AT = 16  # images
FEW = 64  # images of a source
BESIDE = 64  # made for one that has few
NUMBERS = 1 << 20  # of all inputs made for a source: 128 images of 3x52x52
MOST, FEWEST = 128, 32  # of them
AFFORDABLE = 2e13  # FLOPs for all that is made, if it isn't all there is: a few minutes


@dataclass(frozen=True, slots=True)
class Complement:
    """What is made beside the data, or in place of them; and what to tell the user.

    ``blind``: there are no images of the kind that any source was trained on.
    """

    made: Batches | None = None
    notes: tuple[str, ...] = ()
    blind: bool = False


@dataclass(frozen=True, slots=True)
class Supply:
    """What there is to look at and to fit to, and what to tell the user about it."""

    data: Batches | None
    made: Batches | None
    notes: tuple[str, ...] = ()
    blind: bool = False  # see :class:`Complement`

    @property
    def everything(self) -> Batches | None:
        """Data and what is made beside them."""
        return combined(self.data, self.made)


def complement(
    programs: Sequence[Program],
    data: Batches | None,
    inputs: tuple[torch.Tensor, ...],
    *,
    images: int | None,
    seed: int,
) -> Complement:
    """Inputs made for every source; ``images``: so many. None: as the data are.

    Without data that is all there is. Of another kind than what a source was trained on: as many;
    few: some more (docs/decisions/2026-11-27-synthetic.md). Not where making them takes long.
    """
    able = [feasible(p, inputs) for p in programs]
    if images == 0 or not any(able) or (data is None and not all(able)):
        return Complement()
    wanted = [_many(inputs) if images is None else images] * len(programs)
    notes: tuple[str, ...] = ()
    blind = data is None
    try:
        if data is not None and images is None:
            wanted, notes = _needed(programs, data, inputs)
            blind = len(notes) == len(programs)
        made = synthesise(programs, inputs, wanted, seed=seed)
    except RuntimeError as error:  # takes no other number of inputs, or isn't differentiable
        if shortage(error):
            raise
        reason = str(error).splitlines()[0]
        text = f"no inputs could be made for the sources ({reason})"
        return Complement(None, (*notes, text), blind)
    owned = [(batch, number) for number, own in enumerate(made) for batch in own]
    if not owned:
        return Complement(None, notes, blind)
    found = Batches(tuple(b for b, _ in owned), tuple(n for _, n in owned))
    role = "stand in for them" if data is None else "are taken beside the calibration data"
    text = f"{found.examples} inputs that give the sources' norms the statistics they keep {role}"
    first = "no calibration data: " if data is None else ""
    return Complement(found, (*notes, first + text), blind)


def combined(data: Batches | None, made: Batches | None) -> Batches | None:
    """Both, the data first."""
    if data is None or made is None:
        return data or made
    return Batches((*data.batches, *made.batches), (*data.owners, *made.owners))


def _many(inputs: tuple[torch.Tensor, ...]) -> int:
    return int(np.clip(NUMBERS // max(sum(t[0].numel() for t in inputs), 1), FEWEST, MOST))


def _needed(
    programs: Sequence[Program], data: Batches, inputs: tuple[torch.Tensor, ...]
) -> tuple[list[int], tuple[str, ...]]:
    """How many inputs each source lacks, and for which the data are of another kind."""
    wanted, notes = [], []
    for number, program in enumerate(programs):
        distance = divergence(program, _some(data, number))
        if distance > FOREIGN:
            wanted.append(_many(inputs))
            notes.append(
                f"the calibration images look unlike what source {number} was trained on (what its "
                f"norms see diverges by {distance:.2g} from what they keep, {FOREIGN} at most is "
                "usual): are they normalised as in training, and of the same kind?"
            )
        else:
            wanted.append(BESIDE if _own(data, number) < FEW else 0)
    sizes = [count(p.module, inputs).flops * n for p, n in zip(programs, wanted, strict=True)]
    if 3 * STEPS * sum(sizes) > AFFORDABLE:  # a step: forwards, and back twice as long
        return [0] * len(programs), tuple(notes)
    return wanted, tuple(notes)


def _own(data: Batches, source: int) -> int:
    """How many images a source has, those that may be anybody's included."""
    found = zip(data.batches, data.owners, strict=True)
    return sum(len(batch[0]) for batch, owner in found if owner in (source, None))


def _some(data: Batches, source: int) -> tuple[torch.Tensor, ...]:
    """A few images of a source from all over its data: these may be sorted."""
    found = zip(data.batches, data.owners, strict=True)
    own = [b for b, owner in found if owner in (source, None)] or list(data.batches)
    picked = own[:: -(-len(own) // LOOKED_AT)]
    each = -(-LOOKED_AT // len(picked))
    rows = [np.unique(np.linspace(0, len(b[0]) - 1, each).astype(int)).tolist() for b in picked]
    return tuple(
        torch.cat([b[k][at] for b, at in zip(picked, rows, strict=True)])
        for k in range(len(picked[0]))
    )
