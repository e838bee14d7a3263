"""ZipIt (Stoica et al. 2023) at 1.0x: greedy merging of channels within and across models.

Per group: correlations among the channels of all sources; the most correlated pair is merged until
as many are left as one source has; a merged channel is the average of its members and is undone
(copied to each of them) where it is read. Statistics are recomputed. Channels in blocks (grouped
convolutions, GroupNorm) can't be merged within a model; they are matched across models instead.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.accuracy.rivals.aligned import Aligned, Request, align, set_tensor, statistics
from passes.observe import Statistics
from passes.recalibrate import recalibrate
from passes.rewrite import Site
from pleas_fx.algebra.moments import Moments
from pleas_fx.algebra.similarity import correlation
from pleas_fx.ir import Axis, FloatArray, GroupId, IntArray, Layout
from pleas_fx.permuting import occurrences

Clusters = IntArray  # (sources, channels): the merged channel that each belongs to


def zipit(request: Request) -> nn.Module:
    """The zipped network, every channel group at the width of one source."""
    aligned = align(request, "activations")  # blocks are matched by this, others don't care
    observed = statistics(aligned.programs, aligned.symmetries, aligned.data, request.seed)
    clusters = zipped_groups(aligned, observed)
    for site in aligned.rewritten.sites:
        module = aligned.rewritten.module.get_submodule(site.module)
        for name, _ in [*module.named_parameters(), *module.named_buffers()]:
            if not name.startswith("num_batches"):
                set_tensor(module, name, _zipped(aligned, site, name, clusters))
    recalibrate(aligned.rewritten.module, aligned.data.batches)
    return aligned.rewritten.module


def zipped_groups(aligned: Aligned, observed: Statistics) -> dict[GroupId, Clusters]:
    """The clusters of every group that may move."""
    symmetry, sources = aligned.symmetries[0], len(aligned.models)
    found = {}
    for group in symmetry.groups:
        points = observed.points(group.id)
        if group.blocks is not None or not points:
            found[group.id] = np.tile(np.arange(group.size), (sources, 1))
            continue
        whole = [p.moments for p in points if isinstance(p.moments, Moments)]  # narrow: all are
        similarity = sum(correlation(moments.covariance) for moments in whole) / len(whole)
        found[group.id] = greedy(np.asarray(similarity), sources, group.size)
    return found


def greedy(similarity: FloatArray, sources: int, size: int) -> Clusters:
    """Merge the most similar pair of clusters until ``size`` are left.

    The similarity of a merged channel to another one is the mean over the two it came from.
    """
    total = sources * size
    work = similarity.astype(np.float64).copy()
    np.fill_diagonal(work, -np.inf)
    label, weight = np.arange(total), np.ones(total)
    for _ in range(total - size):
        a, b = np.unravel_index(int(np.argmax(work)), work.shape)
        mixed = (weight[a] * work[a] + weight[b] * work[b]) / (weight[a] + weight[b])
        work[a], work[:, a] = mixed, mixed
        work[b], work[:, b] = -np.inf, -np.inf
        work[a, a] = -np.inf
        weight[a] += weight[b]
        label[label == b] = a
    _, numbers = np.unique(label, return_inverse=True)
    return numbers.reshape(sources, size).astype(np.int64)


def merging(clusters: Clusters, source: int) -> Tensor:
    """(size, size): the source's share of the average that each merged channel is."""
    size = clusters.shape[1]
    count = np.bincount(clusters.reshape(-1), minlength=size)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    matrix[clusters[source], np.arange(size)] = torch.from_numpy(1.0 / count[clusters[source]])
    return matrix


def undoing(clusters: Clusters, source: int) -> Tensor:
    """(size, size): every channel of the source as a copy of its merged channel."""
    return (merging(clusters, source) > 0).double().T


def _zipped(
    aligned: Aligned, site: Site, name: str, clusters: Mapping[GroupId, Clusters]
) -> Tensor:
    """Σ over sources of M · W · U, along the output and the input axis of one tensor."""
    total: Tensor | None = None
    for source in range(len(aligned.models)):
        if (site.rows[:, source] < 0).all():
            continue
        module = aligned.programs[source].module.get_submodule(site.source)
        value = module.state_dict()[name].double()
        layout = aligned.symmetries[source].layout
        value = _outputs(value, site, source, layout, f"{site.source}.{name}", clusters)
        if value.dim() > 1 and site.columns is not None:
            value = _inputs(value, site, source, layout, f"{site.source}.{name}", clusters)
        total = value if total is None else total + value
    assert total is not None
    return total


def _outputs(
    value: Tensor,
    site: Site,
    source: int,
    layout: Layout,
    key: str,
    clusters: Mapping[GroupId, Clusters],
) -> Tensor:
    matrix = axis_matrix(layout, Axis(key, 0), clusters, source, merge=True)
    if matrix is None:  # an output of the network: the mean over those that have it
        rows = site.rows[:, source]
        share = (rows >= 0) / np.maximum((site.rows >= 0).sum(1), 1)
        picked = value[torch.from_numpy(np.maximum(rows, 0))]
        return picked * torch.from_numpy(share).view(-1, *[1] * (value.dim() - 1))
    product: Tensor = torch.tensordot(matrix, value, dims=([1], [0]))
    return product


def _inputs(
    value: Tensor,
    site: Site,
    source: int,
    layout: Layout,
    key: str,
    clusters: Mapping[GroupId, Clusters],
) -> Tensor:
    matrix = axis_matrix(layout, Axis(key, 1), clusters, source, merge=False)
    if matrix is None:
        return value
    product: Tensor = torch.tensordot(value, matrix, dims=([1], [0]))
    return product.movedim(-1, 1)


def axis_matrix(
    layout: Layout,
    axis: Axis,
    clusters: Mapping[GroupId, Clusters],
    source: int,
    *,
    merge: bool,
) -> Tensor | None:
    """Merging (merged, own) or undoing (own, merged) along an axis; None: it doesn't move.

    Merged positions are those of the source's axis, since all are merged by number.
    """
    classes = layout.axes.get(axis)
    if classes is None or classes.ndim > 1:
        return None
    groups, channel, rank = layout.group[classes], layout.channel[classes], occurrences(classes)
    if not set(groups.tolist()) & {int(g) for g in clusters}:
        return None
    result = torch.zeros(len(classes), len(classes), dtype=torch.float64)
    for g in np.unique(groups):
        at = np.flatnonzero(groups == g)
        same = torch.from_numpy(rank[at][:, None] == rank[at][None, :])
        own = clusters.get(GroupId(int(g)))
        matrix = torch.eye(len(at), dtype=torch.float64)
        if own is not None:
            full = merging(own, source) if merge else undoing(own, source)
            matrix = full[channel[at][:, None], channel[at][None, :]]
        result[at[:, None], at[None, :]] = matrix * same
    return result
