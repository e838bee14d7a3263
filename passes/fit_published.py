"""The published PLeaS objective, solved to its optimum: a baseline.

Nasery et al. 2025, section 4.2: every layer by itself, inputs and targets averaged over the
sources, before the norm; statistics are recomputed afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from passes._lockstep import MEMORY, Batch, Network, Store
from passes._rows import mean_rows
from passes.recalibrate import recalibrate
from passes.rewrite import Rewritten, Site
from pleas_fx.algebra.ridge import Gram, solve, solve_dual
from pleas_fx.extract import positions
from pleas_fx.ir import IntArray, LayerFit, Program
from pleas_fx.rules.modules import contraction
from pleas_fx.unfold import (
    from_matrix,
    input_rows,
    output_positions,
    output_rows,
    to_matrix,
)


@dataclass(frozen=True, slots=True)
class FitPublished:
    """Options of the pass."""

    name: str = "fit_published"
    ridge: float = 1e-4
    rows_per_unknown: int = 16
    seed: int = 0

    def run(
        self, programs: Sequence[Program], rewritten: Rewritten, batches: Sequence[Batch]
    ) -> tuple[LayerFit, ...]:
        return fit_published(
            programs, rewritten, batches, self.ridge, self.rows_per_unknown, self.seed
        )


def fit_published(
    programs: Sequence[Program],
    rewritten: Rewritten,
    batches: Sequence[Batch],
    ridge: float,
    rows_per_unknown: int,
    seed: int,
    tick: Callable[[], None] = lambda: None,
) -> tuple[LayerFit, ...]:
    """Fit the contractions of ``rewritten.module`` in place, then recompute its statistics."""
    store = Store(MEMORY)
    by_node: dict[str, list[Site]] = {}
    for site in rewritten.sites:
        by_node.setdefault(site.node, []).append(site)
    layers: list[LayerFit] = []
    try:
        sources = [Network(p.module, batches, store, f"source{s}") for s, p in enumerate(programs)]
        for node in programs[0].module.graph.nodes:
            _step(sources, rewritten, node, by_node, layers, (ridge, rows_per_unknown, seed))
            tick()
    finally:
        store.close()
    recalibrate(rewritten.module, batches)
    return tuple(layers)


def _step(
    sources: Sequence[Network],
    rewritten: Rewritten,
    node: fx.Node,
    by_node: dict[str, list[Site]],
    layers: list[LayerFit],
    options: tuple[float, int, int],
) -> None:
    if node.op == "output":
        return
    for source in sources:
        for operand in (node, *node.all_input_nodes):
            source.hold(operand.name)
        source.run(node.name)
    for site in by_node.get(node.name, ()):
        module = rewritten.module.get_submodule(site.module) if node.op == "call_module" else None
        if module is not None and contraction(module) is not None:
            layers.append(_fit(sources, site, module, node, options))
    for source in sources:
        for operand in (node, *node.all_input_nodes):
            source.release(operand.name)


def _fit(
    sources: Sequence[Network],
    site: Site,
    layer: Any,
    node: fx.Node,
    options: tuple[float, int, int],
) -> LayerFit:
    ridge, rows_per_unknown, seed = options
    prior = to_matrix(layer, layer.weight.detach())
    groups, outputs, unknowns = prior.shape
    free = layer.bias is not None
    bias = layer.bias.detach() if free else prior.new_zeros(groups * outputs)
    gram = Gram.zeros(unknowns, outputs, (groups,))
    parts: list[tuple[Tensor, Tensor]] = []
    wanted = max(rows_per_unknown * unknowns, 4096)
    batches = len(sources[0].batches)
    for k in range(batches):
        shape = sources[0].value(site.node, k).shape
        rng = np.random.default_rng((seed, k, len(site.node)))
        at = positions(rng, output_positions(layer, shape), -(-wanted // batches))
        x = _mean_input(sources, site, layer, node.all_input_nodes[0].name, k)
        z = input_rows(layer, x, shape, at)
        t = mean_rows([output_rows(layer, s.value(site.node, k), at) for s in sources], site.rows)
        parts.append((z, t))
    total = sum(len(t) for _, t in parts)
    if groups == 1 and total < unknowns:
        solution = solve_dual(
            torch.cat([z[:, 0] for z, _ in parts]),
            torch.cat([t for _, t in parts]),
            prior[0],
            bias,
            ridge,
            intercept=free,
        )
    else:
        for z, t in parts:
            gram.add(z.transpose(0, 1), t.reshape(len(t), groups, outputs).transpose(0, 1))
        solution = solve(gram, prior, bias.view(groups, outputs), ridge, intercept=free)
    with torch.no_grad():
        layer.weight.copy_(from_matrix(layer, solution.weight, layer.weight))
        if free:
            layer.bias.copy_(solution.bias.reshape(-1))
    return LayerFit(
        site.module,
        solution.residual,
        total,
        unknowns,
        solution.condition,
        solution.rank,
        solution.status,
    )


def _mean_input(
    sources: Sequence[Network], site: Site, layer: nn.Module, operand: str, batch: int
) -> Tensor:
    """The input averaged over the sources, channel by channel as the slots say."""
    values = [s.value(operand, batch) for s in sources]
    columns = site.columns if site.columns is not None else _own_columns(site, layer)
    channel = values[0].dim() - 1 if isinstance(layer, nn.Linear) else 1
    moved = [v.movedim(channel, 1) for v in values]
    mean = mean_rows(moved, columns)
    return mean.movedim(1, channel)


def _own_columns(site: Site, layer: Any) -> IntArray:
    """Depthwise and grouped layers read what stands at their rows."""
    if not site.local:
        return site.rows
    inner = layer.in_channels // layer.groups
    outer = layer.out_channels // layer.groups
    first = site.rows[::outer]
    columns = []
    for s, local in enumerate(site.local):
        per_source = local[::outer]
        block = np.where(first[:, s] >= 0, first[:, s] // outer, -1)
        columns.append(
            np.where(block[:, None] >= 0, block[:, None] * inner + per_source, -1).reshape(-1)
        )
    return np.stack(columns, axis=1)
