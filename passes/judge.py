"""Judge a network by what its sources would say of its answers, without labels.

A classifier's score is the probability that the sources give to the classes it answers, in the
mean over examples; a tensor of other outputs scores 1 less its relative squared error. Counting
equal answers instead would favour a source by itself: it always agrees with itself, and where two
sources differ, an ensemble's answer is no more often equal to either's than one of theirs is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from passes._lockstep import Batch
from passes._targets import towards_owner

Answers = Sequence[tuple[Tensor, ...]]  # per batch, every output tensor


@dataclass(frozen=True, slots=True)
class Judge:
    """Options of the pass."""

    name: str = "judge"

    def run(self, model: nn.Module, batches: Sequence[Batch], wanted: Answers) -> float:
        return score(answers(model, batches), wanted)


def answers(model: nn.Module, batches: Sequence[Batch]) -> Answers:
    """Every output tensor on every batch."""
    with torch.inference_mode():
        return tuple(
            tuple(t for t in tree_leaves(model(*batch)) if isinstance(t, Tensor))
            for batch in batches
        )


def expected(given: Sequence[Answers], owners: Sequence[int | None]) -> Answers:
    """What networks are fitted to; ``given``: of every source."""
    found = []
    for k, owner in enumerate(owners):
        means = [torch.stack(same).mean(0) for same in zip(*(own[k] for own in given), strict=True)]
        if owner is not None:
            means = [towards_owner(o, m) for o, m in zip(given[owner][k], means, strict=True)]
        found.append(tuple(means))
    return tuple(found)


def score(found: Answers, wanted: Answers) -> float:
    """Mean over the outputs; 1 is as good as an answer can be."""
    outputs = len(wanted[0])
    parts = []
    for k in range(outputs):
        own = torch.cat([batch[k].double() for batch in found])
        theirs = torch.cat([batch[k].double() for batch in wanted])
        parts.append(_score(own, theirs))
    return sum(parts) / outputs


def _score(found: Tensor, wanted: Tensor) -> float:
    if _classifies(wanted):
        believed = wanted.softmax(1).gather(1, found.argmax(1, keepdim=True))
        return float(believed.mean())
    signal = (wanted - wanted.mean(0)).square().sum().clamp_min(1e-300)
    return 1.0 - float((found - wanted).square().sum() / signal)


def _classifies(output: Tensor) -> bool:
    return output.dim() == 2 and output.shape[1] > 1
