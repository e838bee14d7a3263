"""Whose an image is, where nobody says: the source that knows it best.

Two signs are added up. What a source's norms see of an image diverges less from what they keep if
it is like the training images, and answers to images that are known are surer. The surer
answer alone is right for 65 to 70 % of the images, both signs together for 82 to 86 %
(docs/decisions/2026-11-27-owners.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from passes import _norms
from passes._answers import classifies
from passes._lockstep import Batch
from pleas_fx.ir import IntArray, Program

LEAST = 1e-12


@dataclass(frozen=True, slots=True)
class Attribute:
    """Options of the pass."""

    name: str = "attribute"

    def run(self, programs: Sequence[Program], batches: Sequence[Batch]) -> IntArray | None:
        return attribute(programs, batches)


def attribute(programs: Sequence[Program], batches: Sequence[Batch]) -> IntArray | None:
    """(images,) the number of the likeliest source.

    Each sign is compared as it is, in units of its deviation over all images and sources: an owner
    with few images among many keeps them. None where a source has no norms that keep statistics of
    maps, or where its outputs aren't the logits of classes.
    """
    seen = [_signs(program, batches) for program in programs]
    known = [signs for signs in seen if signs is not None]
    if len(known) < len(seen):
        return None
    familiar, sure = (torch.stack(sign) for sign in zip(*known, strict=True))
    score = familiar / familiar.std().clamp_min(LEAST) + sure / sure.std().clamp_min(LEAST)
    owners: IntArray = score.argmax(0).numpy()
    return owners


def _signs(program: Program, batches: Sequence[Batch]) -> tuple[Tensor, Tensor] | None:
    """(images,) each: how little diverges what the norms see, and the odds of the answer."""
    familiar, logits = [], []
    with torch.no_grad(), _norms.watched(program.module, _divergence) as found:
        for batch in batches:
            found.clear()
            outputs = program.module(*batch)
            if not found or not isinstance(outputs, Tensor) or outputs.dim() != 2:
                return None
            familiar.append(-torch.stack(found).clamp_min(LEAST).log().mean(0).double().cpu())
            logits.append(outputs.double().cpu())
    answers = torch.cat(logits)
    if not classifies(answers):
        return None
    best, answer = answers.max(1)
    others = answers.scatter(1, answer.unsqueeze(1), -torch.inf)
    return torch.cat(familiar), best - others.logsumexp(1)


def _divergence(norm: _BatchNorm, values: Tensor) -> Tensor | None:
    """(images,) of every image by itself, in the mean over the channels; None without maps."""
    if values.dim() < 3 or values[0, 0].numel() == 1:
        return None
    maps = values.flatten(2)
    return _norms.divergence(norm, maps.mean(2), maps.var(2, unbiased=False)).mean(1)
