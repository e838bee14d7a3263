"""What the consumers of a group read: the selection problems that plans are made from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from passes.observe import Statistics
from pleas_fx.algebra.moments import Moments, RowSums, at_least_float32
from pleas_fx.algebra.selection import WIDE, Problem
from pleas_fx.algebra.weighting import Matrix, Weighting, added, matrix_of, root_of
from pleas_fx.extract import extractor
from pleas_fx.ir import Axis, Group, IntArray, Matching, Program, Symmetry
from pleas_fx.rules.modules import contraction, is_depthwise

ROUNDING = 1e-10  # of a float32 value, squared, with some room
SHRINKAGE = 0.1  # times unknowns / (unknowns + rows)


def problem(
    programs: Sequence[Program],
    symmetries: Sequence[Symmetry],
    statistics: Statistics | None,
    matching: Matching,
    family: Sequence[Group],
) -> Problem:
    """The selection problem of a family: covariances in matched order, unit by unit.

    In float32 where it is wide.
    """
    sources = len(programs)
    dtype = torch.float32 if sum(g.size for g in family) > WIDE else torch.float64
    blocks = family[0].blocks
    count = blocks.count if blocks else family[0].size
    parts = [
        _group_problem(programs, symmetries, statistics, group, matching.partner[group.id], dtype)
        for group in family
    ]
    if blocks is None:
        return Problem(parts[0][0], parts[0][1])
    return _joined(parts, count, sources)


def _joined(parts: Sequence[tuple[Tensor, list[Weighting]]], count: int, sources: int) -> Problem:
    """Several groups of a block family side by side, each unit's channels in a row."""
    sizes = [w[0].size for _, w in parts]
    total = sum(sizes)
    covariance = torch.zeros(sources * total, sources * total, dtype=parts[0][0].dtype)
    weighting = [torch.zeros(total, total, dtype=parts[0][0].dtype) for _ in range(sources)]
    place, at = [], 0
    per_unit = total // count
    for n in sizes:
        inner = n // count
        unit = torch.arange(n) // inner
        place.append(unit * per_unit + at + torch.arange(n) % inner)
        at += inner
    for (c, q), where in zip(parts, place, strict=True):
        n = len(where)
        for s in range(sources):
            weighting[s][where[:, None], where] = q[s].whole()
            for t in range(sources):
                rows, columns = where + s * total, where + t * total
                covariance[rows[:, None], columns] = c[s * n : (s + 1) * n, t * n : (t + 1) * n]
    return Problem(covariance, [Matrix(q) for q in weighting], per_unit)


def _group_problem(
    programs: Sequence[Program],
    symmetries: Sequence[Symmetry],
    statistics: Statistics | None,
    group: Group,
    partner: IntArray,
    dtype: torch.dtype,
) -> tuple[Tensor, list[Weighting]]:
    sources, n = partner.shape
    points = list(_observed(statistics, group)) if statistics is not None else []
    if not points:
        return _guess(sources, n).to(dtype), [matrix_of((), n, dtype)] * sources
    places = torch.from_numpy(partner + n * np.arange(sources)[:, None])  # in the moments
    covariance = torch.zeros(sources * n, sources * n, dtype=dtype)
    nodes = [node for node, _ in points]
    read = [_weighting(*own, group, nodes, dtype) for own in zip(programs, symmetries, strict=True)]
    matched = torch.zeros(sources, sources, n, dtype=torch.float64)
    weighting: list[Weighting | None] = [None] * sources
    for (_, moments), *forms in zip(points, *read, strict=True):
        variance = moments.variance
        share, kept = float(variance.sum()) or 1.0, 1 - _shrinkage(moments)
        moments.add_covariance(covariance, kept / share)
        matched += moments.covariances(places[:, None], places) / share
        for s, q in enumerate(forms):
            own = slice(s * n, (s + 1) * n)
            error = kept * moments.inner(q, own)
            error += (1 - kept) * float(q.diagonal() @ variance[own])
            weighting[s] = added(weighting[s], q.times(share / max(error, 1e-300)))
    order = places.reshape(-1)
    covariance = covariance[order[:, None], order]
    covariance.view(sources, n, sources, n).diagonal(dim1=1, dim2=3).copy_(matched)
    orders = torch.from_numpy(partner)
    return covariance, [q.at(o) for q, o in zip(weighting, orders, strict=True) if q is not None]


def _varies(moments: RowSums) -> bool:
    """Whether a place isn't the same on all inputs, up to rounding: it has a class token, say."""
    variance, square = float(moments.variance.sum()), float(moments.mean.square().sum())
    return variance > ROUNDING * (variance + square)


def _shrinkage(moments: RowSums) -> float:
    """How far covariances of channels that aren't matched are drawn to zero.

    From few rows other channels seem to say more about a channel than they do.
    """
    size = len(moments.total)
    return SHRINKAGE * size / (size + moments.count)


def _guess(sources: int, n: int) -> Tensor:
    """Without data: matched channels correlate a little, all others not at all."""
    across = torch.full((sources, sources), 0.5, dtype=torch.float64).fill_diagonal_(1.0)
    return torch.kron(across, torch.eye(n, dtype=torch.float64))


def _observed(statistics: Statistics, group: Group) -> Iterator[tuple[str, Moments]]:
    """Places where a group is read, or else made, that aren't the same on all inputs."""
    for point in statistics.read.get(group.id) or statistics.made.get(group.id, ()):
        if isinstance(point.moments, Moments) and _varies(point.moments):
            yield point.node, point.moments


def _weighting(
    program: Program,
    symmetry: Symmetry,
    group: Group,
    nodes: Sequence[str],
    dtype: torch.dtype,
) -> Iterator[Weighting]:
    """What the consumers of each node read; everything alike where it has none.

    Roots where a wide group's readers have fewer outputs, all together.
    """
    by_name = {node.name: node for node in program.module.graph.nodes}

    def readers(name: str) -> Iterator[Tensor]:
        for user in by_name[name].users:
            if user.op == "call_module":
                yield from _module_rows(program, str(user.target), symmetry, group)

    wide = group.size > WIDE
    outputs = [sum(map(len, readers(name))) for name in nodes] if wide else []
    rooted = wide and all(outputs) and sum(outputs) < group.size
    for name in nodes:
        own = readers(name)
        yield root_of(own, dtype) if rooted else matrix_of(own, group.size, dtype)


def _module_rows(
    program: Program, target: str, symmetry: Symmetry, group: Group
) -> Iterator[Tensor]:
    """(outputs, channels) weights that read the group, one for each occurrence."""
    module = program.module.get_submodule(target)
    entry = contraction(module)
    if entry is None or is_depthwise(module) or int(getattr(module, "groups", 1)) > 1:
        return
    classes = symmetry.layout.axes.get(Axis(f"{target}.weight", entry.in_dim))
    where = _extractor_index(symmetry, classes, group)
    if where is None:
        return
    weight = module.get_parameter("weight").detach().cpu().movedim(entry.in_dim, 0)
    for occurrence in where:
        rows = weight[torch.from_numpy(occurrence)].reshape(group.size, -1)
        yield at_least_float32(rows).T


def _extractor_index(symmetry: Symmetry, classes: IntArray | None, group: Group) -> IntArray | None:
    """(occurrences, channels): where a group is on a weight axis."""
    if classes is None or classes.ndim > 1:
        return None
    layout = replace(symmetry.layout, values={"axis": (classes,)})
    found = extractor(layout, "axis", group.id)
    return None if found is None else found.index.numpy()
