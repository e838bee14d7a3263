"""The outputs of classifiers once more: classes that exclude each other, answered as sources would.

Least squares meets the sources' logits, all of them equally well; what is answered depends on
differences between the largest. So the last layer goes on from there, towards the probabilities
that the source gives (docs/decisions/2026-11-27-answers.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from passes._contractions import Job
from passes._rows import Rows
from passes.rewrite import Site
from pleas_fx.algebra.softmax import Answers, fit_answers
from pleas_fx.ir import Program
from pleas_fx.unfold import from_matrix, input_rows, to_matrix

WEIGHT = 2.0  # images that the start counts as
CONFIDENT = 0.25  # of the way from chance to certainty, in the mean
ALWAYS = 0.95  # of the images with one answer: then it is no question of classes


def answering(program: Program, heads: frozenset[str]) -> frozenset[str]:
    """The heads whose values are the network's outputs as they are: one row of numbers an image."""
    output = next(n for n in program.module.graph.nodes if n.op == "output")
    direct = {n.name for n in output.all_input_nodes if n.op == "call_module"}
    return frozenset(n for n in direct & heads if len(program.shapes.get(n, ())) == 2)


def answer(rows: Rows, jobs: Sequence[Job]) -> dict[str, float]:
    """Start at the layers' weights, and write better ones where the targets are of classes.

    Returns, by the modules of those layers, the share of the information in the targets that is
    left: their divergence from what is answered, relative to that from their mean. With several
    folds, each is answered by a fit to the others.
    """
    left = {job.site.module: _answer(rows, job) for job in jobs}
    return {module: share for module, share in left.items() if share is not None}


def classifies(logits: Tensor) -> bool:
    """Whether numbers (n, k) look like the logits of a softmax over classes.

    They are confident, not always of the same, and their mean over the classes is near zero: the
    gradient of a cross entropy has no part along it, other than for several labels an image.
    """
    known = logits.isfinite()
    each = known.sum(1)
    if len(logits) == 0 or bool((each < 2).any()):
        return False
    largest, answers = logits.softmax(1).max(1)
    confidence = ((largest - 1 / each) / (1 - 1 / each)).mean()
    filled = logits.where(known, 0.0)
    mean = filled.sum(1) / each
    spread = ((filled - mean.unsqueeze(1)).square() * known).sum(1).div(each).sqrt().mean()
    same = answers.bincount().max() / len(answers)
    return bool((confidence > CONFIDENT) & (mean.mean().abs() < spread) & (same < ALWAYS))


def _answer(rows: Rows, job: Job) -> float | None:
    layer, batches = rows.module(job.site), rows.batches(job.site)
    prior = to_matrix(layer, layer.weight.detach())
    if job.norm is not None or len(prior) > 1 or layer.bias is None or not batches:
        return None
    sample = rows.sample_at(job.site.node, batches, prior.shape[2])
    logits = torch.cat([wanted_logits(rows, job.site, k, len(at)) for k, at in sample.items()])
    if not classifies(logits):
        return None
    z = torch.cat([_inputs(rows, job.site, layer, k, len(at)) for k, at in sample.items()])
    wanted = logits.softmax(1)
    start = prior[0], layer.bias.detach().clone()
    found = fit_answers(z, wanted, *start, WEIGHT / len(z))
    with torch.no_grad():
        layer.weight.copy_(from_matrix(layer, found.weight.unsqueeze(0), layer.weight))
        layer.bias.copy_(found.bias)
    folds = rows.settings.folds
    made = _unseen(z, wanted, start, folds) if folds > 1 else _logs(z, found)
    least = divergence(wanted, wanted.mean(0).log())
    return float(divergence(wanted, made)) / max(float(least), 1e-300)


def _unseen(z: Tensor, wanted: Tensor, start: tuple[Tensor, Tensor], folds: int) -> Tensor:
    """(images, outputs) logarithms of answers, each from a fit to the other folds."""
    fold = torch.arange(len(z), device=z.device) % folds
    made = torch.empty_like(wanted)
    for f in range(folds):
        own, others = fold == f, fold != f
        weight = WEIGHT / max(int(others.sum()), 1)
        made[own] = _logs(z[own], fit_answers(z[others], wanted[others], *start, weight))
    return made


def _logs(z: Tensor, found: Answers) -> Tensor:
    return (z.double() @ found.weight.T + found.bias).log_softmax(1)


def divergence(wanted: Tensor, logs: Tensor) -> Tensor:
    """Of answers with these logarithms from the ones that are wanted: nats an image, the mean."""
    each = torch.xlogy(wanted, wanted) - torch.where(wanted > 0, wanted * logs, 0.0)
    return each.sum(1).mean()


def _inputs(rows: Rows, site: Site, layer: Any, batch: int, count: int) -> Tensor:
    at = rows.kept.at(site.node, batch, count)
    value = rows.merged.value(rows.input(site), batch)
    return input_rows(layer, value, rows.shape(site, batch), at)[:, 0]


def wanted_logits(rows: Rows, site: Site, batch: int, count: int) -> Tensor:
    """(images, outputs) logits; none where the owner lacks an output."""
    wanted = rows.targets([site], batch, count)[0].double()
    missing = torch.from_numpy(rows.lacking(site, batch)).to(wanted.device)
    return wanted.masked_fill(missing, -torch.inf)
