"""Fitting convolutions and linear layers: all lanes that a merge makes of one layer together.

The lanes read overlapping inputs at the same positions, so that rows are gathered and summed once,
over the union of what they read; every lane solves its own part of the normal equations.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from passes._links import Behind
from passes._lockstep import require_finite
from passes._rows import Rows
from passes.rewrite import Site
from pleas_fx.algebra.gram import Gram
from pleas_fx.algebra.links import Block, Blocks, fit_link
from pleas_fx.algebra.ridge import Solution, solve, solve_dual
from pleas_fx.ir import IntArray
from pleas_fx.lanes import blend, blend_rows
from pleas_fx.rules.modules import contraction, is_depthwise, running_map
from pleas_fx.unfold import from_matrix, input_rows, to_matrix

ENOUGH = 0.003  # of a target left by least squares: an activation has nothing to hide then
FEWER = 2  # times the rows of the sums are read in every step through an activation
HELD = 1 << 26  # numbers of rows that aren't read again for every step
BLOCK = 8192  # rows added up at a time: adding a wide Gram matrix costs more than few rows


@dataclass(frozen=True, slots=True)
class Job:
    """A layer to fit, and the batch norm behind it where both are fitted as one affine map."""

    site: Site
    norm: Site | None

    @property
    def target(self) -> Site:
        """Whose values in the sources are to be met."""
        return self.norm or self.site


@dataclass(frozen=True, slots=True)
class Regression:
    """What a layer is solved for."""

    job: Job
    layer: Any
    prior: Tensor  # (groups, outputs of a group, unknowns of a group)
    bias: Tensor  # (groups, outputs of a group)
    intercept: bool

    @property
    def unknowns(self) -> int:
        """Of one output."""
        return int(self.prior.shape[2])

    @property
    def outputs(self) -> int:
        """Of all groups."""
        return int(self.prior.shape[0] * self.prior.shape[1])


@dataclass(frozen=True, slots=True)
class Union:
    """The lanes that several layers read, each once, side by side."""

    # Where they are found: layer, first channel, number of channels (0: all of them).
    slices: tuple[tuple[int, int, int], ...]
    columns: tuple[Tensor, ...]  # per layer, its unknowns among the union's
    unknowns: int


def fit_contractions(rows: Rows, jobs: Sequence[Job]) -> list[tuple[Job, Solution]]:
    """Solve for all lanes of one source layer, and write their weights.

    Raises:
        CalibrationError: a value isn't finite; names batch and node.
    """
    regressions = [_regression(rows, job) for job in jobs]
    done = []
    for together in _shared(rows, regressions):
        for regression, solution in zip(together, _solve(rows, together), strict=True):
            _write(rows, regression, solution)
            done.append((regression.job, solution))
    return done


# -- which layers share their rows -----------------------------------------------------------------


def _shared(rows: Rows, regressions: Sequence[Regression]) -> list[list[Regression]]:
    """Lanes with the same rows, in sets that cost less together than one by one."""
    alike: dict[tuple[int, ...], list[Regression]] = {}
    for regression in regressions:
        alike.setdefault(rows.batches(regression.job.target), []).append(regression)
    return [part for found in alike.values() for part in _worthwhile(rows, found)]


def _worthwhile(rows: Rows, found: list[Regression]) -> list[list[Regression]]:
    apart = [[r] for r in found]
    if len(found) == 1 or any(not r.job.site.parts for r in found):
        return apart
    unknowns = _union(found).unknowns
    own = [r.unknowns for r in found]
    available = rows.available(found[0].job.target)
    if unknowns > min(available, rows.wanted(unknowns)):  # no lane may need the sums then
        return [found] if available < min(own) else apart
    return [found] if unknowns**3 <= sum(n**3 for n in own) else apart


def _union(found: Sequence[Regression]) -> Union:
    """Every lane from the layer that reads the most; runs of channels in one piece."""
    first: dict[str, int] = {}
    slices: list[tuple[int, int, int]] = []
    total = 0
    per = [r.unknowns // sum(c for _, c in r.job.site.parts) for r in found]
    for k in sorted(range(len(found)), key=lambda k: -found[k].unknowns):
        at = 0
        for name, channels in found[k].job.site.parts:
            if name not in first:
                first[name], total = total, total + channels * per[k]
                slices = _extended(slices, k, at, channels)
            at += channels
    columns = [
        torch.cat([torch.arange(first[n], first[n] + c * p) for n, c in r.job.site.parts])
        for r, p in zip(found, per, strict=True)
    ]
    return Union(tuple(slices), tuple(columns), total)


def _extended(
    slices: list[tuple[int, int, int]], layer: int, at: int, channels: int
) -> list[tuple[int, int, int]]:
    if slices and slices[-1][0] == layer and slices[-1][1] + slices[-1][2] == at:
        return [*slices[:-1], (layer, slices[-1][1], slices[-1][2] + channels)]
    return [*slices, (layer, at, channels)]


# -- solving ---------------------------------------------------------------------------------------


def _solve(rows: Rows, together: Sequence[Regression]) -> list[Solution]:
    first = together[0]
    if len(together) > 1:
        union = _union(together)
    else:
        every = torch.arange(first.unknowns)
        union = Union(((0, 0, 0),), (every,), first.unknowns)
    sample = rows.sample(first.job.target, union.unknowns)
    total = sum(len(at) for at in sample.values())
    if len(first.prior) == 1 and total < min(r.unknowns for r in together):
        return _from_rows(rows, together, union, sample)
    gram = _gram(rows, together, union, sample)
    if len(together) == 1:
        ridge, intercept = rows.settings.ridge, first.intercept
        found = solve(gram, first.prior, first.bias, ridge, intercept=intercept)
        return [_through(rows, first, gram, first.prior, found)]
    return _from_parts(rows, together, union, gram)


def _from_parts(
    rows: Rows, together: Sequence[Regression], union: Union, gram: Gram
) -> list[Solution]:
    solutions, at = [], 0
    for r, columns in zip(together, union.columns, strict=True):
        outputs = torch.arange(at, at + r.outputs)
        at += r.outputs
        device, ridge = gram.square.device, rows.settings.ridge
        part = gram.part(columns.to(device), outputs.to(device))
        found = solve(part, r.prior[0], r.bias[0], ridge, intercept=r.intercept)
        solutions.append(_through(rows, r, part, r.prior[0], found))
    return solutions


def _through(
    rows: Rows,
    regression: Regression,
    gram: Gram,
    prior: Tensor,
    start: Solution,
) -> Solution:
    """On from the least squares, to what an activation behind the layer passes on."""
    behind = rows.behind(regression.job.target)
    found = start
    if behind is not None and start.system is not None and start.residual >= ENOUGH:
        sample = rows.sample(regression.job.target, regression.unknowns // FEWER)
        blocks = _reading(rows, regression, behind, sample, prior.dim() == 3)
        link, intercept = behind.link, regression.intercept
        found = fit_link(gram, start, prior, blocks, link, intercept=intercept)
    return replace(found, system=None)  # as large as the sums


def _reading(
    rows: Rows,
    regression: Regression,
    behind: Behind,
    sample: Mapping[int, IntArray],
    batched: bool,
) -> Blocks:
    """The layer's rows, several batches at a time: ``batched`` with groups as a leading dim."""
    site = regression.job.target
    groups, outputs, unknowns = regression.prior.shape
    every = Union(((0, 0, 0),), (), unknowns)

    def read() -> Iterator[tuple[Tensor, ...]]:
        for k, at in sample.items():
            z = _inputs(rows, [regression], every, k, at)
            yield (z, *rows.read_behind(site, behind, k, at))

    def blocks() -> Iterator[Block]:
        for z, *sides in _joined(read()):
            shaped = [side.reshape(len(z), groups, outputs) for side in sides]
            found = [part.transpose(0, 1) for part in (z, *shaped)]
            yield Block(*(found if batched else [part[0] for part in found]))

    if sum(map(len, sample.values())) * groups * unknowns > HELD:
        return blocks
    held = list(blocks())
    return lambda: held


def _from_rows(
    rows: Rows, together: Sequence[Regression], union: Union, sample: Mapping[int, IntArray]
) -> list[Solution]:
    parts = [_read(rows, together, union, k, at) for k, at in sample.items()]
    z, t = (torch.cat(side) for side in zip(*parts, strict=True))
    solutions, start = [], 0
    for r, columns in zip(together, union.columns, strict=True):
        own = z[:, 0] if len(together) == 1 else z[:, 0, columns.to(z.device)]
        target = t[:, start : start + r.outputs]
        start += r.outputs
        ridge = rows.settings.ridge
        solutions.append(
            solve_dual(own, target, r.prior[0], r.bias[0], ridge, intercept=r.intercept)
        )
    return solutions


def _gram(
    rows: Rows, together: Sequence[Regression], union: Union, sample: Mapping[int, IntArray]
) -> Gram:
    first, outputs = together[0].prior, sum(r.outputs for r in together)
    if len(together) > 1:
        gram = Gram.zeros(union.unknowns, outputs, (), first.device)
        for z, t in _blocks(rows, together, union, sample):
            gram.add(z[:, 0], t)
        return gram
    gram = Gram.zeros(union.unknowns, first.shape[1], (len(first),), first.device)
    for z, t in _blocks(rows, together, union, sample):
        gram.add(z.transpose(0, 1), t.reshape(len(t), *first.shape[:2]).transpose(0, 1))
    return gram


def _blocks(
    rows: Rows, together: Sequence[Regression], union: Union, sample: Mapping[int, IntArray]
) -> Iterator[tuple[Tensor, ...]]:
    """The rows of several batches at a time."""
    return _joined(_read(rows, together, union, k, at) for k, at in sample.items())


def _joined(parts: Iterable[tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
    held: list[tuple[Tensor, ...]] = []
    for part in parts:
        held.append(part)
        if sum(len(own[0]) for own in held) >= BLOCK:
            yield _one(held)
            held = []
    if held:
        yield _one(held)


def _one(held: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return held[0] if len(held) == 1 else tuple(map(torch.cat, zip(*held, strict=True)))


def _read(
    rows: Rows, together: Sequence[Regression], union: Union, batch: int, at: IntArray
) -> tuple[Tensor, Tensor]:
    """(rows, groups, unknowns), (rows, outputs of all layers)."""
    z = _inputs(rows, together, union, batch, at)
    targets = rows.targets([r.job.target for r in together], batch, len(at))
    return z, targets[0] if len(targets) == 1 else torch.cat(targets, 1)


def _inputs(
    rows: Rows, together: Sequence[Regression], union: Union, batch: int, at: IntArray
) -> Tensor:
    """(rows, groups, unknowns)."""
    shape = rows.shape(together[0].job.target, batch)
    pieces = []
    for k, start, channels in union.slices:
        r = together[k]
        x = rows.merged.value(rows.input(r.job.site), batch)
        entry = contraction(r.layer)
        assert entry is not None
        if channels and channels < x.shape[entry.channel]:
            x = x.narrow(entry.channel % x.dim(), start, channels)
        pieces.append(input_rows(r.layer, x, shape, at))
    z = pieces[0] if len(pieces) == 1 else torch.cat(pieces, 2)
    require_finite(z, batch, together[0].job.site.node)
    return z


# -- weights ---------------------------------------------------------------------------------------


def _regression(rows: Rows, job: Job) -> Regression:
    """Towards the block average of the sources' weights, with the norms behind them folded in."""
    layer = rows.module(job.site)
    if job.norm is None:
        prior = to_matrix(layer, layer.weight.detach())
        own = layer.bias
        bias = own.detach() if own is not None else torch.zeros(len(job.site.rows))
        free = own is not None
    else:
        prior, bias = _folded_prior(rows, job.site, job.norm, layer)
        free = True
    return Regression(job, layer, prior, bias.to(prior).reshape(prior.shape[:2]), free)


def _folded_prior(rows: Rows, site: Site, norm: Site, layer: Any) -> tuple[Tensor, Tensor]:
    weights, biases = [], []
    for program in rows.programs:
        conv: Any = program.module.get_submodule(site.source)
        scale, shift = running_map(program.module.get_submodule(norm.source))
        entry = contraction(conv)
        assert entry is not None
        shape = [1] * conv.weight.dim()
        shape[entry.out_dim] = -1
        if entry.out_dim == 1 and conv.groups > 1:
            scale = torch.ones_like(scale)
            weights.append(conv.weight.detach())
        else:
            weights.append(conv.weight.detach() * scale.view(shape))
        start = conv.bias.detach() if conv.bias is not None else 0.0
        biases.append(shift + start * scale)
    return to_matrix(layer, _blended(site, layer, weights)), blend(biases, (0, site.rows))


def _blended(site: Site, layer: Any, weights: Sequence[Tensor]) -> Tensor:
    entry = contraction(layer)
    assert entry is not None
    if site.local:
        return blend_rows(weights, site.rows, site.local)
    if site.columns is None or is_depthwise(layer):
        return blend(weights, (0, site.rows))
    return blend(weights, (entry.out_dim, site.rows), (entry.in_dim, site.columns))


def _write(rows: Rows, regression: Regression, solution: Solution) -> None:
    """The weights; a norm behind them keeps the statistics of the rows they were fitted on."""
    layer, job = regression.layer, regression.job
    bias = solution.bias.reshape(-1)
    with torch.no_grad():
        layer.weight.copy_(from_matrix(layer, solution.weight, layer.weight))
        if job.norm is None:
            if layer.bias is not None:
                layer.bias.copy_(bias)
            return
        if layer.bias is not None:
            layer.bias.zero_()
        norm = rows.module(job.norm)
        mean, variance = solution.output_mean.reshape(-1), solution.output_variance.reshape(-1)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.weight.copy_((variance + norm.eps).sqrt())
        norm.bias.copy_(bias + mean)
