"""Owners of calibration images that nobody has named, where one of the sources must be it.

One output for classes that no two sources share: an image is of one class, so only one source
knows it, and what the others answer to it means nothing. Their mean would be half of that.
Everywhere else the mean of the sources is a fair target, and images stay nobody's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from passes.attribute import attribute
from pleas_fx.calibration import Batches
from pleas_fx.heads import Classes
from pleas_fx.ir import IntArray, Program

BETTER = "give PerSource, or --calibration once for each source"
Batch = tuple[torch.Tensor, ...]


def exclusive(heads: str, classes: Classes | None) -> bool:
    """Whether every class is known to one source only."""
    names = [name for own in classes or () for name in own]
    return heads == "joint" and len(names) == len(set(names))


def attributed(
    programs: Sequence[Program], data: Batches, heads: str, classes: Classes | None
) -> tuple[Batches, tuple[str, ...]]:
    """The data with an owner for every image, and what to tell the user about it."""
    unknown = [b for b, owner in zip(data.batches, data.owners, strict=True) if owner is None]
    if not unknown or not exclusive(heads, classes):
        return data, ()
    owners = attribute(programs, unknown)
    if owners is None:
        return data, (
            "nobody said which source the calibration images belong to, and it can't be told by "
            f"their norms and logits; {BETTER}",
        )
    given = zip(data.batches, data.owners, strict=True)
    named = [(b, owner) for b, owner in given if owner is not None]
    named += _regrouped(unknown, owners, len(programs))
    counts = ", ".join(
        f"{n} to source {s}" for s, n in enumerate(np.bincount(owners, minlength=len(programs)))
    )
    note = (
        f"nobody said which source the calibration images belong to: {counts} by what their norms "
        f"and logits say, which is a guess; {BETTER}"
    )
    return Batches(tuple(b for b, _ in named), tuple(owner for _, owner in named)), (note,)


def _regrouped(batches: Sequence[Batch], owners: IntArray, sources: int) -> list[tuple[Batch, int]]:
    """Batches of one owner's images, no larger than they were, in the order of their first."""
    size = max(len(batch[0]) for batch in batches)
    inputs = tuple(torch.cat(given) for given in zip(*batches, strict=True))
    parts = [
        (part, owner)
        for owner in range(sources)
        for part in torch.from_numpy(np.flatnonzero(owners == owner)).split(size)
        if len(part)
    ]
    parts.sort(key=lambda entry: int(entry[0][0]))
    return [(tuple(t[part.to(t.device)] for t in inputs), owner) for part, owner in parts]
