"""Whose an image is, where nobody says: the source that knows it best.

Two signs are added up. What a source's norms see of an image diverges less from what they keep if
it is like the training images, and answers to images that are known are surer. Either alone is
right for two thirds of the images, both together for 82 to 86 %
(docs/decisions/2026-11-27-owners.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

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
    with torch.no_grad(), _watched(program.module) as found:
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


@contextmanager
def _watched(module: nn.Module) -> Iterator[list[Tensor]]:
    """(images,) a norm that the module runs on maps: the divergence of every image by itself."""
    found: list[Tensor] = []

    def see(norm: nn.Module, given: tuple[Tensor, ...], _: object) -> None:
        assert isinstance(norm, _BatchNorm)
        if norm.running_mean is not None and given[0].dim() > 2 and given[0][0, 0].numel() > 1:
            found.append(_divergence(norm, given[0]))

    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    handles = [norm.register_forward_hook(see) for norm in norms]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _divergence(norm: _BatchNorm, values: Tensor) -> Tensor:
    """(images,) of normal distributions, in the mean over the channels."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    maps = values.flatten(2)
    kept = norm.running_var + norm.eps
    ratio = (maps.var(2, unbiased=False) + norm.eps) / kept
    shift = (maps.mean(2) - norm.running_mean).square() / kept
    return (0.5 * (shift + ratio - 1 - ratio.log())).mean(1)
