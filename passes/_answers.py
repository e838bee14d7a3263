"""Joint heads once more: classes that exclude each other, answered as each image's owner would.

Least squares meets the owner's logits; but what the class is decided by are differences between
logits of classes that no source compared. The owner's probabilities, none for classes that it
doesn't have, say which should win (docs/accuracy-findings.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from passes._contractions import Job
from passes._rows import Rows
from passes.rewrite import Site
from pleas_fx.algebra.softmax import fit_answers
from pleas_fx.ir import Program
from pleas_fx.unfold import from_matrix, input_rows, to_matrix

WEIGHT = 2.0  # images that the start counts as (docs/ablations.md)


def answering(program: Program, heads: frozenset[str]) -> frozenset[str]:
    """The heads whose values are the network's outputs as they are: one row of logits an image."""
    output = next(n for n in program.module.graph.nodes if n.op == "output")
    direct = {n.name for n in output.all_input_nodes if n.op == "call_module"}
    return frozenset(n for n in direct & heads if len(program.shapes[n]) == 2)


def answer(rows: Rows, jobs: Sequence[Job]) -> None:
    """Start at the layer's weights, and write better ones; needs images of every source."""
    for job in jobs:
        _answer(rows, job)


def _answer(rows: Rows, job: Job) -> None:
    layer, owners = rows.module(job.site), rows.settings.owners
    owned = [k for k in rows.batches(job.site) if owners[k] is not None]
    if job.norm is not None or {owners[k] for k in owned} != set(range(len(rows.programs))):
        return
    prior = to_matrix(layer, layer.weight.detach())
    if len(prior) > 1 or layer.bias is None:
        return
    sample = rows.sample_at(job.site.node, owned, prior.shape[2])
    z = torch.cat([_inputs(rows, job.site, layer, k, len(at)) for k, at in sample.items()])
    wanted = torch.cat([_owners(rows, job.site, k, len(at)) for k, at in sample.items()])
    found = fit_answers(z, wanted, prior[0], layer.bias, WEIGHT / len(z))
    with torch.no_grad():
        layer.weight.copy_(from_matrix(layer, found.weight.unsqueeze(0), layer.weight))
        layer.bias.copy_(found.bias)


def _inputs(rows: Rows, site: Site, layer: Any, batch: int, count: int) -> Tensor:
    at = rows.kept.at(site.node, batch, count)
    value = rows.merged.value(rows.input(site), batch)
    return input_rows(layer, value, rows.shape(site, batch), at)[:, 0]


def _owners(rows: Rows, site: Site, batch: int, count: int) -> Tensor:
    """(images, outputs) probabilities."""
    owner = rows.settings.owners[batch]
    assert owner is not None
    value = rows.of(owner, site.node, batch, count).double()
    own = torch.from_numpy(site.rows[:, owner]).to(value.device)
    return value[:, own.clamp_min(0)].masked_fill(own < 0, -torch.inf).softmax(1)
