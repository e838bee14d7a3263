"""Regression through an activation φ: a layer is fitted to what φ passes on of its outputs.

Minimises the mean over rows of the matching loss of φ, whose slope at the outputs p = W z + b is
φ(p) − φ(t) (Auer, Herbster and Warmuth 1996), plus the ridge of the least squares. Where φ rises
that is convex, and where both sides are cut off it is zero. While φ' is at most L, the loss lies
below L/2 ‖p − q − (φ(t) − φ(q)) / L‖² and touches it at p = q, up to a constant: so every step is a
least-squares problem with the matrix of the first. Steps are accelerated (Nesterov 1983).

All tensors may have leading batch dims, as in :mod:`pleas_fx.algebra.ridge`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pleas_fx.algebra.gram import Gram
from pleas_fx.algebra.ridge import Solution, System

STEPS = 8  # docs/decisions/2026-11-30-links.md
WORTH = 0.002  # of what is left: a step that brings less is the last


@dataclass(frozen=True, slots=True)
class Link:
    """φ, which acts on every number by itself, and the most that it rises by."""

    passed: Callable[[Tensor], Tensor]
    slope: float


@dataclass(frozen=True, slots=True)
class Block:
    """Some rows: z (…, r, k), and what φ reads in the place of W z + b.

    ``wanted`` (…, r, m) is all of that, ``beside`` (…, r, m) what is added to W z + b; None: 0.
    """

    z: Tensor
    wanted: Tensor
    beside: Tensor | None = None


Blocks = Callable[[], Iterable[Block]]  # read once for every step, and once more


def fit_link(
    gram: Gram,
    start: Solution,
    prior: Tensor,
    blocks: Blocks,
    link: Link,
    *,
    intercept: bool = True,
) -> Solution:
    """From the least squares ``start`` of ``gram`` towards ``prior`` (…, m, k), if it solved any.

    ``blocks``: the rows of the sums, or some of them. What is unexplained, and of what, is then
    told of φ's values. An output's weights are the start's where no others are better.
    """
    if start.system is None:
        return start
    centre = gram.centre if intercept else torch.zeros_like(gram.centre)
    steps = _Steps(start.system, prior.double(), centre, link.slope, intercept)
    before = _Map(start.weight.double(), start.bias.double())
    probe, momentum = before, 1.0
    first = best = seen = _seen(probe, blocks(), link)
    for _ in range(STEPS):
        found = steps.taken(probe, seen)
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        probe = found.beyond(before, (momentum - 1) / following)
        before, momentum, known = found, following, float(seen.left.sum())
        seen = _seen(probe, blocks(), link)
        best = best.or_better(seen)
        if float(seen.left.sum()) > (1 - WORTH) * known:
            break
    if not bool((best.left < first.left).any()):
        return replace(start, unexplained=first.left, variance=first.variance)
    return replace(
        start,
        weight=best.at.weight,
        bias=best.at.bias,
        unexplained=best.left,
        variance=best.variance,
        output_mean=best.mean,
        output_variance=best.spread,
    )


@dataclass(frozen=True, slots=True)
class _Map:
    """An affine map."""

    weight: Tensor  # (…, m, k) float64
    bias: Tensor  # (…, m)

    def beyond(self, before: _Map, factor: float) -> _Map:
        """So much further than from ``before`` to here."""
        return _Map(
            self.weight + factor * (self.weight - before.weight),
            self.bias + factor * (self.bias - before.bias),
        )


@dataclass(frozen=True, slots=True)
class _Seen:
    """What rows say about a map: (…, m), float64, but for the first two; means over the rows."""

    at: _Map
    products: Tensor  # (…, k, m): of z and what is missing behind φ
    missing: Tensor
    left: Tensor  # squared, behind φ
    variance: Tensor  # of what is wanted behind φ
    mean: Tensor  # of W z
    spread: Tensor  # its variance

    def or_better(self, other: _Seen) -> _Seen:
        """Output by output what leaves less (but ``products`` and ``missing``)."""
        better = other.left < self.left
        weight = torch.where(better.unsqueeze(-1), other.at.weight, self.at.weight)
        return replace(
            self,
            at=_Map(weight, torch.where(better, other.at.bias, self.at.bias)),
            left=torch.where(better, other.left, self.left),
            mean=torch.where(better, other.mean, self.mean),
            spread=torch.where(better, other.spread, self.spread),
        )


def _seen(at: _Map, blocks: Iterable[Block], link: Link) -> _Seen:
    """One reading of the rows."""
    products, rows = torch.zeros_like(at.weight.mT), 0
    sums = torch.zeros(6, *at.bias.shape, dtype=torch.float64, device=at.bias.device)
    for block in blocks:
        weight, bias = at.weight.mT.to(block.z), at.bias.unsqueeze(-2).to(block.z)
        made = block.z @ weight
        read = made + bias if block.beside is None else made + bias + block.beside.to(made)
        wanted = link.passed(block.wanted.to(made))
        missing = wanted - link.passed(read)
        products += (block.z.mT @ missing).double()
        each = (missing, missing.square(), wanted, wanted.square(), made, made.square())
        for total, part in zip(sums, each, strict=True):
            total += part.sum(-2, dtype=torch.float64)
        rows += block.z.shape[-2]
    missed, left, level, power, mean, square = sums / rows
    variance = (power - level.square()).clamp_min(0)
    spread = (square - mean.square()).clamp_min(0)
    return _Seen(at, products / rows, missed, left, variance, mean, spread)


@dataclass(frozen=True, slots=True)
class _Steps:
    """What all steps share."""

    system: System
    prior: Tensor
    centre: Tensor  # (…, k): what the inputs are taken about
    slope: float
    intercept: bool

    def taken(self, at: _Map, seen: _Seen) -> _Map:
        """One least-squares problem further than ``at``, where so much is missing."""
        about_centre = seen.products - self.centre.unsqueeze(-1) * seen.missing.unsqueeze(-2)
        pull = self.system.damping.unsqueeze(-1).unsqueeze(-1) * (self.prior - at.weight)
        change = self.system.solve(about_centre / self.slope + pull.mT)
        if not self.intercept:
            return _Map(at.weight + change, at.bias)
        moved = (change @ self.centre.unsqueeze(-1)).squeeze(-1)
        return _Map(at.weight + change, at.bias + seen.missing / self.slope - moved)
