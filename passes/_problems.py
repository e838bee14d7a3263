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
from pleas_fx.algebra.weighting import Weighting, added, matrix_of, root_of
from pleas_fx.extract import extractor
from pleas_fx.ir import Axis, Group, IntArray, Matching, Program, Symmetry
from pleas_fx.rules.modules import contraction, is_depthwise

ROUNDING = 1e-10  # of a float32 value, squared, with some room
SHRINKAGE = 0.1  # times unknowns / (unknowns + rows)


def problems(
    programs: Sequence[Program],
    symmetries: Sequence[Symmetry],
    statistics: Statistics | None,
    matching: Matching,
    family: Sequence[Group],
) -> tuple[Problem, ...]:
    """The selection problems of a family, one for each group: covariances in matched order.

    In float32 where it is wide.
    """
    dtype = torch.float32 if sum(g.size for g in family) > WIDE else torch.float64
    found = []
    for group in family:
        partner = matching.partner[group.id]
        own = _group_problem(programs, symmetries, statistics, group, partner, dtype)
        found.append(Problem(*own, group.size // group.blocks.count if group.blocks else 1))
    return tuple(found)


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
