"""Fitting what is one factor and one shift a channel: norms, and layer scales."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from passes._rows import Rows, mean_rows
from passes._targets import BATCH_NORMS, ROW_NORMS, UNKNOWNS, layer_scale
from passes.rewrite import Site
from pleas_fx.algebra.links import Block, fit_link
from pleas_fx.algebra.ridge import Gram, Solution, solve
from pleas_fx.ir import IntArray
from pleas_fx.lanes import blend
from pleas_fx.module_tree import attribute
from pleas_fx.rules.modules import channelwise, running_map
from pleas_fx.unfold import output_rows, rows_at


def fit_norm(rows: Rows, site: Site) -> Solution | None:
    """A norm that isn't fitted with the layer before it; None for other modules.

    Raises:
        CalibrationError: a value isn't finite; names batch and node.
    """
    norm: Any = rows.module(site)
    if not isinstance(norm, (*BATCH_NORMS, *ROW_NORMS)):
        return None
    if isinstance(norm, BATCH_NORMS) and norm.track_running_stats:
        _statistics(rows, site, norm)
    if getattr(norm, "weight", None) is None or len(norm.weight) != len(site.rows):
        return None
    entry = channelwise(norm)
    if entry is None or not rows.aligned(site.node, entry.channel):
        return None
    return _affine(rows, site, norm)


def fit_scale(
    rows: Rows, name: str, sites: Mapping[str, Site]
) -> tuple[Site, Solution] | tuple[None, None]:
    """A product with a per-channel parameter (a layer scale); None for other nodes."""
    node = rows.merged.nodes[name]
    found = layer_scale(rows.merged.module, node)
    if found is None or found[0].name not in sites:
        return None, None
    scale, dim = found
    site = sites[scale.name]
    other = next(n for n in node.all_input_nodes if n is not scale)
    solution = _layer_scale(rows, node, other, scale, dim, site)
    return (None, None) if solution is None else (site, solution)


def _statistics(rows: Rows, site: Site, norm: Any) -> None:
    """True running statistics of what reaches a batch norm."""
    total = square = 0.0
    count = 0
    for k in range(len(rows.settings.owners)):
        x = rows.merged.value(rows.input(site), k)
        values = x.movedim(1, -1).reshape(-1, x.shape[1]).double()
        count += len(values)
        total = total + values.sum(0)
        square = square + values.square().sum(0)
    mean = torch.as_tensor(total / count)
    with torch.no_grad():
        norm.running_mean.copy_(mean)
        norm.running_var.copy_((torch.as_tensor(square / count) - mean.square()).clamp_min(0))


def _affine(rows: Rows, site: Site, norm: Any) -> Solution:
    """Scale and shift per channel by regression on the normalised value."""
    prior, shift = _affine_prior(rows, site, norm)
    free = _bias(norm) is not None
    with torch.no_grad():
        norm.weight.fill_(1.0)
        if free:
            norm.bias.zero_()
    gram = Gram.zeros(1, 1, (len(site.rows),), prior.device)
    sample = rows.sample(site, UNKNOWNS)
    made = {k: _by_channel(_normalised(rows, site, norm, k, at)) for k, at in sample.items()}
    for k, at in sample.items():
        (t,) = rows.targets([site], k, len(at))
        gram.add(made[k], _by_channel(t))
    before, ridge = prior.view(-1, 1, 1), rows.settings.ridge
    solution = solve(gram, before, shift.view(-1, 1), ridge, intercept=free)
    behind = rows.behind(site)
    if behind is not None and solution.status == "cholesky":
        blocks = [
            Block(made[k], *map(_by_channel, rows.read_behind(site, behind, k, at)))
            for k, at in sample.items()
        ]
        solution = fit_link(gram, solution, before, lambda: blocks, behind.link, intercept=free)
    with torch.no_grad():
        norm.weight.copy_(solution.weight.reshape(-1))
        if free:
            norm.bias.copy_(solution.bias.reshape(-1))
    return solution


def _normalised(rows: Rows, site: Site, norm: Any, batch: int, at: IntArray) -> Tensor:
    """(rows, channels): without scale and shift, which the norm has none of yet."""
    with torch.inference_mode():
        return output_rows(norm, norm(rows.merged.value(rows.input(site), batch)), at)


def _by_channel(values: Tensor) -> Tensor:
    """(channels, rows, 1) from (rows, channels)."""
    return values.T.unsqueeze(-1)


def _bias(norm: Any) -> Tensor | None:
    """Some norms have none by their definition (RMSNorm)."""
    bias: Tensor | None = getattr(norm, "bias", None)
    return bias


def _affine_prior(rows: Rows, site: Site, norm: Any) -> tuple[Tensor, Tensor]:
    """(channels,) scale and shift of the normalised value, as the sources have them."""
    scale = norm.weight.detach().double().clone()  # the module's own are about to be reset
    bias = _bias(norm)
    shift = torch.zeros_like(scale) if bias is None else bias.detach().double().clone()
    if not isinstance(norm, BATCH_NORMS) or norm.running_mean is None:
        return scale, shift
    assert norm.running_var is not None
    maps = [running_map(p.module.get_submodule(site.source)) for p in rows.programs]
    scale, shift = (blend(part, (0, site.rows)) for part in zip(*maps, strict=True))
    deviation = (norm.running_var.double() + norm.eps).sqrt()
    return scale * deviation, shift + scale * norm.running_mean


def _layer_scale(
    rows: Rows, node: fx.Node, other: fx.Node, scale: fx.Node, dim: int, site: Site
) -> Solution | None:
    """A per-channel factor by regression without intercept."""
    parameter = attribute(rows.merged.module, str(scale.target))
    source_node = rows.origin[node.name]
    if len(site.rows) != parameter.numel() or not rows.aligned(source_node, dim):
        return None
    gram = Gram.zeros(1, 1, (parameter.numel(),), parameter.device)
    batches = range(len(rows.settings.owners))
    for k, at in rows.sample_at(source_node, batches, UNKNOWNS).items():
        value = rows.merged.value(other.name, k).movedim(dim, -1)
        z = rows_at(value, 1, at)
        values = [rows.of(s, source_node, k, len(at)) for s in range(len(rows.programs))]
        t = mean_rows(values, site.rows)
        gram.add(z.T.unsqueeze(-1), t.T.unsqueeze(-1))
    prior = parameter.detach().double().view(-1, 1, 1)
    zero = torch.zeros(parameter.numel(), 1, dtype=torch.float64)
    solution = solve(gram, prior, zero, rows.settings.ridge, intercept=False)
    with torch.no_grad():
        parameter.copy_(solution.weight.reshape(parameter.shape))
    return solution
