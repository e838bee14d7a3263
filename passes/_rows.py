"""The rows that layers of the merged network are fitted on, given the values before them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from passes._links import Behind, behind
from passes._lockstep import Network, require_finite
from passes._targets import Sampling, Targets, towards_owner
from passes.rewrite import Rewritten, Site
from pleas_fx.ir import IntArray, Program, members
from pleas_fx.unfold import rows_at


@dataclass(frozen=True, slots=True)
class Settings:
    """How layers are fitted."""

    ridge: float
    rows_per_unknown: int
    seed: int
    owners: tuple[int | None, ...]
    heads: frozenset[str]
    answering: frozenset[str] = frozenset()  # heads whose outputs are classes to choose from
    folds: int = 1  # of images: above 1, what is left of the outputs is that of unseen ones

    def sampling(self, widest: float) -> Sampling:
        """The sample of the sources' values that layers so wide need."""
        return Sampling(self.rows_per_unknown, self.seed, self.owners, self.heads, widest)


class Rows:
    """Samples positions of a layer's output, and reads values there."""

    def __init__(
        self,
        kept: Targets,
        merged: Network,
        programs: Sequence[Program],
        settings: Settings,
        rewritten: Rewritten,
    ) -> None:
        self.kept, self.merged, self.programs = kept, merged, programs
        self.settings = settings
        self.origin = {n: source for source, made in rewritten.emitted.items() for n in made}
        self._values = rewritten.layout.values
        self._in_place = _in_place(rewritten)

    def module(self, site: Site) -> Any:
        """The layer of the merged network."""
        return self.merged.module.get_submodule(site.module)

    def aligned(self, node: str, channel: int) -> bool:
        """Whether a position of a source's value is the same place in every source.

        It isn't where channels along another dim than ``channel`` (heads, say) were matched in
        another order, or not all of them are there.
        """
        return all(
            n == 1 or dim == channel % classes.ndim or self._in_place[classes].all()
            for classes in self._values.get(node, ())
            for dim, n in enumerate(classes.shape)
        )

    def input(self, site: Site) -> str:
        """The node of the merged network that a layer reads."""
        return str(self.merged.nodes[site.emitted].all_input_nodes[0].name)

    def batches(self, site: Site) -> tuple[int, ...]:
        """The batches a site is fitted on: a source's own head on its own data, where known."""
        owners = self.settings.owners
        own = np.flatnonzero((site.wanted >= 0).any(0)).tolist()
        if site.node in self.settings.heads and len(own) == 1 and own[0] in owners:
            return tuple(k for k, owner in enumerate(owners) if owner == own[0])
        return tuple(range(len(owners)))

    def available(self, site: Site) -> int:
        """How many positions there are, over all batches."""
        return sum(self.kept.total(site.node, k) for k in self.batches(site))

    def wanted(self, unknowns: int) -> int:
        """How many rows are enough."""
        return self.kept.sampling.wanted(unknowns)

    def sample(self, site: Site, unknowns: int) -> dict[int, IntArray]:
        """Output positions per batch, spread over all batches; the same for all lanes."""
        return self.sample_at(site.node, self.batches(site), unknowns)

    def sample_at(self, node: str, batches: Sequence[int], unknowns: int) -> dict[int, IntArray]:
        """Positions of a node's value for a layer of so many unknowns."""
        quota = -(-self.wanted(unknowns) // max(len(batches), 1))
        return {k: self.kept.at(node, k, quota) for k in batches}

    def shape(self, site: Site, batch: int) -> torch.Size:
        """Of a source's value; sources differ in channels at most."""
        return self.kept.shape(site.node, batch)

    def targets(self, sites: Sequence[Site], batch: int, rows: int) -> list[Tensor]:
        """(rows, outputs) for every lane of one source layer, at so many sampled positions.

        The mean over the sources in a slot. For heads with an owner: its value, or between that
        and the mean where every source has all outputs.
        """
        owner, node = self.settings.owners[batch], sites[0].node
        asked = {s for site in sites for s in np.flatnonzero((site.wanted >= 0).any(0))}
        values = [
            self.of(s, node, batch, rows) if s in asked else None for s in range(len(self.programs))
        ]
        owned = values[owner] if owner is not None and node in self.settings.heads else None
        if owner is None or owned is None:
            return [mean_rows(values, site.wanted) for site in sites]
        return [self._owned(site, owner, owned, values) for site in sites]

    def _owned(
        self, site: Site, owner: int, value: Tensor, values: Sequence[Tensor | None]
    ) -> Tensor:
        own = site.wanted[:, owner]
        if (own < 0).all():
            return mean_rows(values, site.wanted)
        picked = _owners_rows(value, own)
        if (site.wanted < 0).any():  # logits of other classes aren't to be compared
            return picked
        return towards_owner(picked, mean_rows(values, site.wanted))

    def behind(self, site: Site) -> Behind | None:
        """The activation behind a site, or behind a sum with it, here and in all sources.

        Outputs are what they are.
        """
        found = behind(self.merged.module, self.merged.nodes[site.emitted])
        if found is None or site.node in self.settings.heads:
            return None
        sources = range(len(self.programs))
        if found.sum is None or all(self.kept.sums_up(s, site.node) for s in sources):
            return found
        return None

    def read_behind(
        self, site: Site, found: Behind, batch: int, at: IntArray
    ) -> tuple[Tensor, ...]:
        """(rows, outputs) that the activation is to read; what a sum adds, where there is one.

        While that isn't known here, it is what the sources add.
        """
        (own,) = self.targets([site], batch, len(at))
        if found.other is None:
            return (own,)
        asked = np.flatnonzero((site.wanted >= 0).any(0))
        values = [
            self.kept.summed(s, site.node, batch, len(at)) if s in asked else None
            for s in range(len(self.programs))
        ]
        wanted = mean_rows(values, site.wanted)
        beside = self._beside(site, found.other.name, batch, at)
        return wanted, wanted - own if beside is None else beside

    def _beside(self, site: Site, name: str, batch: int, at: IntArray) -> Tensor | None:
        """A value of the merged network at a site's positions, where it is there already."""
        if not self.merged.known(name, batch):
            return None
        value, shape = self.merged.value(name, batch), self.shape(site, batch)
        channel = self.kept.places[site.node].channel % len(shape)
        if value.shape != (*shape[:channel], len(site.rows), *shape[channel + 1 :]):
            return None
        return rows_at(value.movedim(channel, -1), 1, at)

    def lacking(self, site: Site, batch: int) -> npt.NDArray[np.bool_]:
        """Outputs that the batch's owner hasn't got, where it has others of this layer."""
        owner = self.settings.owners[batch]
        wanted = site.wanted
        lacks = wanted[:, owner] < 0 if owner is not None else np.zeros(len(wanted), bool)
        return lacks & ~lacks.all()

    def of(self, source: int, node: str, batch: int, rows: int) -> Tensor:
        """(rows, channels) of a source's value at so many sampled positions.

        Raises:
            CalibrationError: a value isn't finite.
        """
        value = self.kept.rows(source, node, batch, rows)
        require_finite(value, batch, node)
        return value


def _in_place(rewritten: Rewritten) -> npt.NDArray[np.bool_]:
    """Per class whether it has one place in all sources; the last one is that of no class."""
    table, group = rewritten.table, rewritten.layout.group
    still = [
        g
        for g, lanes in table.lanes.items()
        if all(
            np.array_equal(lane.channels[:, s], np.arange((group == g).sum()))
            for lane in lanes
            for s in members(lane.membership)
        )
    ]
    return np.append(np.isin(group, np.array(still, np.int64)), True)


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
