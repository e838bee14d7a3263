"""The rows that layers of the merged network are fitted on, given the values before them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from passes._lockstep import Network, require_finite
from passes.rewrite import Site
from pleas_fx.extract import positions
from pleas_fx.ir import IntArray, Program
from pleas_fx.unfold import output_positions, output_rows

FEWEST_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Settings:
    """How layers are fitted."""

    ridge: float
    rows_per_unknown: int
    seed: int
    owners: tuple[int | None, ...]
    heads: frozenset[str]
    heads_only: bool = False  # all others are fitted already


class Rows:
    """Samples positions of a layer's output, and reads values there."""

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
        self._number = {name: k for k, name in enumerate(sources[0].nodes)}

    def module(self, site: Site) -> Any:
        """The layer of the merged network."""
        return self.merged.module.get_submodule(site.module)

    def input(self, site: Site) -> str:
        """The node of the merged network that a layer reads."""
        return str(self.merged.nodes[site.emitted].all_input_nodes[0].name)

    def batches(self, site: Site) -> tuple[int, ...]:
        """The batches a site is fitted on: a source's own head on its own data, where known."""
        owners = self.settings.owners
        own = [s for s in range(len(self.sources)) if site.membership == 1 << s]
        if site.node in self.settings.heads and own and own[0] in owners:
            return tuple(k for k, owner in enumerate(owners) if owner == own[0])
        return tuple(range(len(owners)))

    def available(self, site: Site, module: nn.Module) -> int:
        """How many positions there are, over all batches."""
        return sum(output_positions(module, self.shape(site, k)) for k in self.batches(site))

    def wanted(self, unknowns: int) -> int:
        """How many rows are enough."""
        return max(self.settings.rows_per_unknown * unknowns, FEWEST_ROWS)

    def sample(self, site: Site, module: nn.Module, unknowns: int) -> dict[int, IntArray]:
        """Output positions per batch, spread over all batches; the same for all lanes."""
        chosen = self.batches(site)
        quota = -(-self.wanted(unknowns) // max(len(chosen), 1))
        sample = {}
        for k in chosen:
            rng = np.random.default_rng((self.settings.seed, k, self._number[site.node]))
            sample[k] = positions(rng, output_positions(module, self.shape(site, k)), quota)
        return sample

    def shape(self, site: Site, batch: int) -> torch.Size:
        """Of a source's value; sources differ in channels at most."""
        first = int((site.rows >= 0).any(0).argmax())
        shape: torch.Size = self.sources[first].value(site.node, batch).shape
        return shape

    def targets(
        self, sites: Sequence[Site], module: nn.Module, batch: int, at: IntArray
    ) -> list[Tensor]:
        """(rows, outputs) for every lane of one source layer.

        The mean over the sources in a slot, or the owner's value for heads.
        """
        owner, node = self.settings.owners[batch], sites[0].node
        if owner is not None and node in self.settings.heads:
            value = self._at(owner, module, node, batch, at)
            return [_owners_rows(value, site.rows[:, owner]) for site in sites]
        asked = {s for site in sites for s in np.flatnonzero((site.rows >= 0).any(0))}
        values = [
            self._at(s, module, node, batch, at) if s in asked else None
            for s in range(len(self.sources))
        ]
        return [mean_rows(values, site.rows) for site in sites]

    def _at(self, source: int, module: nn.Module, node: str, batch: int, at: IntArray) -> Tensor:
        value = output_rows(module, self.sources[source].value(node, batch), at)
        require_finite(value, batch, node)
        return value


def mean_rows(values: Sequence[Tensor | None], rows: IntArray) -> Tensor:
    """(positions, outputs, …): mean over the sources that have an output; others aren't read."""
    total: Tensor | None = None
    for s, value in enumerate(values):
        if value is None or (rows[:, s] < 0).all():
            continue
        picked = value[:, torch.from_numpy(np.maximum(rows[:, s], 0)).to(value.device)]
        if (rows[:, s] < 0).any():
            present = torch.from_numpy(rows[:, s] >= 0).to(picked)
            picked = picked * _along_channels(present, picked)
        total = picked if total is None else total + picked
    assert total is not None
    count = (rows >= 0).sum(1)
    if (count == 1).all():
        return total
    return total / _along_channels(torch.from_numpy(count).to(total).clamp_min(1), total)


def _along_channels(per_channel: Tensor, value: Tensor) -> Tensor:
    return per_channel.view([1, -1] + [1] * (value.dim() - 2))


def _owners_rows(value: Tensor, own: IntArray) -> Tensor:
    """The owner's outputs; outputs it doesn't have get the mean of those it has, a low constant."""
    picked = value[:, torch.from_numpy(np.maximum(own, 0)).to(value.device)]
    if (own >= 0).all():
        return picked
    low = value.mean(1, keepdim=True).expand_as(picked)
    return torch.where(torch.from_numpy(own >= 0).to(value.device), picked, low)
