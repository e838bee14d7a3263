"""Fitting one layer: gather rows, solve, write the weights back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from passes._layers import blend_rows
from passes._lockstep import Network, require_finite
from passes.rewrite import Site
from pleas_fx.algebra.ridge import Gram, Solution, solve, solve_dual
from pleas_fx.extract import positions
from pleas_fx.ir import IntArray, LayerFit, Program
from pleas_fx.lanes import blend
from pleas_fx.rules.modules import contraction, is_depthwise
from pleas_fx.unfold import (
    from_matrix,
    input_rows,
    output_positions,
    output_rows,
    to_matrix,
)

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
ROW_NORMS = (nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
FEWEST_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Settings:
    """How layers are fitted."""

    ridge: float
    rows_per_unknown: int
    seed: int
    owners: tuple[int | None, ...]
    heads: frozenset[str]


def fusible(module: fx.GraphModule, layer: fx.Node, norm: fx.Node) -> bool:
    """Whether a layer and the norm behind it are one affine map with free coefficients."""
    if layer.op != "call_module" or norm.op != "call_module":
        return False
    second = module.get_submodule(str(norm.target))
    return (
        contraction(module.get_submodule(str(layer.target))) is not None
        and isinstance(second, BATCH_NORMS)
        and second.affine
        and second.track_running_stats
    )


class Fitter:
    """Solves for layers of the merged network, given the values before them."""

    def __init__(
        self,
        sources: Sequence[Network],
        merged: Network,
        programs: Sequence[Program],
        settings: Settings,
        origin: Mapping[str, str],
    ) -> None:
        self.sources, self.merged, self.programs = sources, merged, programs
        self.settings, self.origin = settings, origin
        self.layers: list[LayerFit] = []

    # -- entry points --------------------------------------------------------------------------

    def fused(self, site: Site, norm_site: Site) -> None:
        """Layer and batch norm as one map; the norm keeps true statistics."""
        layer, norm = self._module(site), self._module(norm_site)
        prior, bias = self._folded_prior(site, norm_site, layer)
        solution = self._solve_layer(site, norm_site, layer, prior, bias, True)
        mean, variance = solution.output_mean.reshape(-1), solution.output_variance.reshape(-1)
        with torch.no_grad():
            layer.weight.copy_(from_matrix(layer, solution.weight, layer.weight))
            if layer.bias is not None:
                layer.bias.zero_()
            scale = (variance + norm.eps).sqrt()
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)
            norm.weight.copy_(scale)
            norm.bias.copy_(solution.bias.reshape(-1) + mean)
        self._note(site, solution)

    def single(self, site: Site) -> None:
        """A layer without a batch norm behind it."""
        node = self.merged.nodes[site.emitted]
        if node.op != "call_module":
            return
        layer = self._module(site)
        if contraction(layer) is not None:
            self._contraction(site, layer)
        elif isinstance(layer, BATCH_NORMS):
            self._statistics(site, layer)
            self._affine(site, layer)
        elif isinstance(layer, ROW_NORMS):
            self._affine(site, layer)

    def scale(self, name: str, sites: Mapping[str, Site]) -> None:
        """A product with a per-channel parameter (a layer scale)."""
        node = self.merged.nodes[name]
        operands = [n for n in node.args if isinstance(n, fx.Node)]
        scales = [n for n in operands if n.op == "get_attr" and n.name in sites]
        if getattr(node.target, "__name__", "") != "mul" or len(operands) != 2 or len(scales) != 1:
            return
        other = operands[0] if operands[1] is scales[0] else operands[1]
        self._layer_scale(node, other, scales[0], sites[scales[0].name])

    # -- shared steps --------------------------------------------------------------------------

    def _module(self, site: Site) -> Any:
        return self.merged.module.get_submodule(site.module)

    def _input(self, site: Site) -> str:
        return str(self.merged.nodes[site.emitted].all_input_nodes[0].name)

    def _batches(self, site: Site) -> list[int]:
        """The batches a site is fitted on: a source's own head on its own data, where known."""
        owners = self.settings.owners
        own = [s for s in range(len(self.sources)) if site.membership == 1 << s]
        if site.node in self.settings.heads and own and own[0] in owners:
            return [k for k, owner in enumerate(owners) if owner == own[0]]
        return list(range(len(owners)))

    def _sample(self, site: Site, module: nn.Module, unknowns: int) -> dict[int, IntArray]:
        """Output positions per batch: enough rows for the unknowns, spread over all batches."""
        chosen = self._batches(site)
        wanted = max(self.settings.rows_per_unknown * unknowns, FEWEST_ROWS)
        quota = -(-wanted // max(len(chosen), 1))
        sample = {}
        for k in chosen:
            shape = self._target_shape(site, k)
            rng = np.random.default_rng((self.settings.seed, k, len(self.layers)))
            sample[k] = positions(rng, output_positions(module, shape), quota)
        return sample

    def _target_shape(self, site: Site, batch: int) -> torch.Size:
        shape: torch.Size = self.sources[0].value(site.node, batch).shape
        return shape

    def _target(self, site: Site, module: nn.Module, batch: int, at: IntArray) -> Tensor:
        """(rows, outputs): the mean over the sources in a slot, or the owner's value for heads."""
        owner = self.settings.owners[batch]
        values = [output_rows(module, s.value(site.node, batch), at) for s in self.sources]
        if owner is not None and site.node in self.settings.heads:
            target = _owners_rows(values[owner], site.rows[:, owner])
        else:
            target = mean_rows(values, site.rows)
        require_finite(target, batch, site.node)
        return target

    def _note(self, site: Site, solution: Solution) -> None:
        unknowns = solution.weight.shape[-1]
        self.layers.append(
            LayerFit(
                site.module,
                solution.residual,
                solution.rows,
                unknowns,
                solution.condition,
                solution.rank,
                solution.status,
            )
        )

    # -- contractions --------------------------------------------------------------------------

    def _contraction(self, site: Site, layer: Any) -> None:
        prior = to_matrix(layer, layer.weight.detach())
        bias = layer.bias.detach() if layer.bias is not None else torch.zeros(len(site.rows))
        free = layer.bias is not None
        solution = self._solve_layer(site, site, layer, prior, bias.to(prior), free)
        with torch.no_grad():
            layer.weight.copy_(from_matrix(layer, solution.weight, layer.weight))
            if layer.bias is not None:
                layer.bias.copy_(solution.bias.reshape(-1))
        self._note(site, solution)

    def _solve_layer(
        self, site: Site, at_site: Site, layer: Any, prior: Tensor, bias: Tensor, intercept: bool
    ) -> Solution:
        groups, outputs, unknowns = prior.shape
        sample = self._sample(at_site, layer, unknowns)
        total = sum(len(at) for at in sample.values())
        bias = bias.reshape(groups, outputs)
        if groups == 1 and total < unknowns:
            return self._solve_rows(site, at_site, layer, prior, bias, sample, intercept)
        gram = Gram.zeros(unknowns, outputs, (groups,), prior.device)
        for z, t in self._row_blocks(site, at_site, layer, sample):
            grouped = t.reshape(len(t), groups, outputs).transpose(0, 1)
            gram.add(z.transpose(0, 1), grouped)
        return solve(gram, prior, bias, self.settings.ridge, intercept=intercept)

    def _solve_rows(
        self,
        site: Site,
        at_site: Site,
        layer: Any,
        prior: Tensor,
        bias: Tensor,
        sample: Mapping[int, IntArray],
        intercept: bool,
    ) -> Solution:
        parts = [self._rows(site, at_site, layer, k, at) for k, at in sample.items()]
        z = torch.cat([p[0][:, 0] for p in parts])
        t = torch.cat([p[1] for p in parts])
        return solve_dual(z, t, prior[0], bias[0], self.settings.ridge, intercept=intercept)

    def _row_blocks(
        self, site: Site, at_site: Site, layer: Any, sample: Mapping[int, IntArray]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows of several batches at a time: adding a wide Gram matrix costs more than its rows."""
        held: list[tuple[Tensor, Tensor]] = []
        for number, (k, at) in enumerate(sample.items(), start=1):
            held.append(self._rows(site, at_site, layer, k, at))
            if sum(len(z) for z, _ in held) >= FEWEST_ROWS or number == len(sample):
                yield torch.cat([z for z, _ in held]), torch.cat([t for _, t in held])
                held.clear()

    def _rows(
        self, site: Site, at_site: Site, layer: Any, batch: int, at: IntArray
    ) -> tuple[Tensor, Tensor]:
        x = self.merged.value(self._input(site), batch)
        shape = self._target_shape(at_site, batch)
        z = input_rows(layer, x, shape, at)
        require_finite(z, batch, site.node)
        return z, self._target(at_site, layer, batch, at)

    def _folded_prior(self, site: Site, norm_site: Site, layer: Any) -> tuple[Tensor, Tensor]:
        """The block average of the sources' weights with their norms folded in."""
        weights, biases = [], []
        for program in self.programs:
            conv: Any = program.module.get_submodule(site.source)
            scale, shift = _running_map(program.module.get_submodule(norm_site.source))
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

    # -- norms and scales ----------------------------------------------------------------------

    def _statistics(self, site: Site, norm: Any) -> None:
        """True running statistics of what reaches a batch norm."""
        if not norm.track_running_stats:
            return
        total = square = 0.0
        count = 0
        for k in range(len(self.settings.owners)):
            x = self.merged.value(self._input(site), k)
            rows = x.movedim(1, -1).reshape(-1, x.shape[1]).double()
            count += len(rows)
            total = total + rows.sum(0)
            square = square + rows.square().sum(0)
        mean = torch.as_tensor(total / count)
        with torch.no_grad():
            norm.running_mean.copy_(mean)
            norm.running_var.copy_((torch.as_tensor(square / count) - mean.square()).clamp_min(0))

    def _affine(self, site: Site, norm: Any) -> None:
        """Scale and shift per channel by regression on the normalised value."""
        if getattr(norm, "weight", None) is None or len(norm.weight) != len(site.rows):
            return
        prior, shift = self._affine_prior(site, norm)
        with torch.no_grad():
            norm.weight.fill_(1.0)
            if norm.bias is not None:
                norm.bias.zero_()
        gram = Gram.zeros(1, 1, (len(site.rows),), prior.device)
        for k, at in self._sample(site, norm, 64).items():
            with torch.inference_mode():
                y = norm(self.merged.value(self._input(site), k))
            z = output_rows(norm, y, at)
            t = self._target(site, norm, k, at)
            gram.add(z.T.unsqueeze(-1), t.T.unsqueeze(-1))
        free = norm.bias is not None
        solution = solve(
            gram, prior.view(-1, 1, 1), shift.view(-1, 1), self.settings.ridge, intercept=free
        )
        with torch.no_grad():
            norm.weight.copy_(solution.weight.reshape(-1))
            if norm.bias is not None:
                norm.bias.copy_(solution.bias.reshape(-1))
        self._note(site, solution)

    def _affine_prior(self, site: Site, norm: Any) -> tuple[Tensor, Tensor]:
        """(channels,) scale and shift of the normalised value, as the sources have them."""
        scale = norm.weight.detach().double().clone()  # the module's own are about to be reset
        shift = (
            torch.zeros_like(scale) if norm.bias is None else norm.bias.detach().double().clone()
        )
        if not isinstance(norm, BATCH_NORMS) or norm.running_mean is None:
            return scale, shift
        assert norm.running_var is not None
        maps = [_running_map(p.module.get_submodule(site.source)) for p in self.programs]
        scale, shift = (blend(part, (0, site.rows)) for part in zip(*maps, strict=True))
        deviation = (norm.running_var.double() + norm.eps).sqrt()
        return scale * deviation, shift + scale * norm.running_mean

    def _layer_scale(self, node: fx.Node, other: fx.Node, scale: fx.Node, site: Site) -> None:
        """A per-channel factor by regression without intercept."""
        owner, _, leaf = str(scale.target).rpartition(".")
        parameter = getattr(self.merged.module.get_submodule(owner), leaf)
        channels = [d for d, n in enumerate(parameter.shape) if n > 1]
        source_node = self.origin[node.name]
        if len(channels) != 1 or len(site.rows) != parameter.numel():
            return
        dim = channels[0] - parameter.dim()
        gram = Gram.zeros(1, 1, (parameter.numel(),), parameter.device)
        for k in range(len(self.settings.owners)):
            z = _channel_rows(self.merged.value(other.name, k), dim)
            t = mean_rows(
                [_channel_rows(s.value(source_node, k), dim) for s in self.sources], site.rows
            )
            gram.add(z.T.unsqueeze(-1), t.T.unsqueeze(-1))
        prior = parameter.detach().double().view(-1, 1, 1)
        zero = torch.zeros(parameter.numel(), 1, dtype=torch.float64)
        solution = solve(gram, prior, zero, self.settings.ridge, intercept=False)
        with torch.no_grad():
            parameter.copy_(solution.weight.reshape(parameter.shape))
        self._note(site, solution)


def _running_map(norm: Any) -> tuple[Tensor, Tensor]:
    """Scale and shift of a batch norm in eval mode, float64."""
    deviation = (norm.running_var.double() + norm.eps).sqrt()
    scale = (norm.weight.detach() if norm.affine else 1.0) / deviation
    shift = norm.bias.detach() if norm.affine else 0.0
    return scale, shift - norm.running_mean * scale


def _channel_rows(value: Tensor, dim: int) -> Tensor:
    return value.movedim(dim, -1).reshape(-1, value.shape[dim])


def _blended(site: Site, layer: Any, weights: Sequence[Tensor]) -> Tensor:
    entry = contraction(layer)
    assert entry is not None
    if site.local:
        return blend_rows(weights, site.rows, site.local)
    if site.columns is None or is_depthwise(layer):
        return blend(weights, (0, site.rows))
    return blend(weights, (entry.out_dim, site.rows), (entry.in_dim, site.columns))


def mean_rows(values: Sequence[Tensor], rows: IntArray) -> Tensor:
    """(positions, outputs, …): mean over the sources that have an output."""
    total: Tensor | None = None
    for s, value in enumerate(values):
        if (rows[:, s] < 0).all():
            continue
        picked = value[:, torch.from_numpy(np.maximum(rows[:, s], 0)).to(value.device)]
        if (rows[:, s] < 0).any():
            present = torch.from_numpy(rows[:, s] >= 0).to(picked)
            picked = picked * _along_channels(present, picked)
        total = picked if total is None else total + picked
    assert total is not None
    present = torch.from_numpy((rows >= 0).sum(1)).to(total).clamp_min(1)
    return total / _along_channels(present, total)


def _along_channels(per_channel: Tensor, value: Tensor) -> Tensor:
    return per_channel.view([1, -1] + [1] * (value.dim() - 2))


def _owners_rows(value: Tensor, own: IntArray) -> Tensor:
    """The owner's outputs; outputs it doesn't have get the mean of those it has, a low constant."""
    picked = value[:, torch.from_numpy(np.maximum(own, 0)).to(value.device)]
    if (own >= 0).all():
        return picked
    low = value.mean(1, keepdim=True).expand_as(picked)
    return torch.where(torch.from_numpy(own >= 0).to(value.device), picked, low)
