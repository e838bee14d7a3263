"""What the sources' layers make, at a sample of positions: all that fitting asks of the sources.

The sample is drawn once and used from its beginning, so that a plan, which decides how many rows a
layer needs, can come later; fitting then runs no source again. Positions where something is to be
seen are drawn more often: most of a scene is background (docs/decisions/2026-11-30-scenes.md).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from passes._links import behind
from passes._lockstep import Batch, Store
from pleas_fx.algebra.moments import at_least_float32
from pleas_fx.extract import Runner
from pleas_fx.ir import FloatArray, IntArray, Program
from pleas_fx.module_tree import attribute
from pleas_fx.rules.modules import CHANNELS_LAST, contraction
from pleas_fx.unfold import rows_at, to_matrix

OWNER = 0.5  # share in what heads are fitted to; docs/decisions/2026-11-28-targets.md
FEWEST_ROWS = 4096
UNUSUAL = 0.5  # share of the sample that is drawn by how far from the mean a position is
TELLING = 64  # channels that tell how far that is
TINY = 1e-30
UNKNOWNS = 64  # norms are fitted on as many rows as a layer of so many unknowns: few do
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
ROW_NORMS = (
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)


def towards_owner(owner: Tensor, mean: Tensor) -> Tensor:
    """Outputs that heads are fitted to: between the owner's and the mean of all sources."""
    return mean + OWNER * (owner - mean)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How many positions of every layer are drawn, and from which batches."""

    rows_per_unknown: int
    seed: int
    owners: tuple[int | None, ...]  # of every batch
    heads: frozenset[str]  # nodes that may be fitted on one owner's batches only
    widest: float  # unknowns of a merged layer, relative to a source's

    def wanted(self, unknowns: float) -> int:
        """How many rows are enough for a layer."""
        return max(int(self.rows_per_unknown * unknowns), FEWEST_ROWS)

    def quota(self, node: str, unknowns: int) -> int:
        """Positions of a batch that may be asked for."""
        counts = [sum(o == s for o in self.owners) for s in {*self.owners} - {None}]
        batches = min(counts, default=0) if node in self.heads else 0
        return -(-self.wanted(self.widest * unknowns) // (batches or max(len(self.owners), 1)))


@dataclass(frozen=True, slots=True)
class Place:
    """A node whose values layers are fitted to."""

    channel: int  # dim of its value
    unknowns: int  # of one output


class Targets:
    """Sampled values of all sources, by node and batch; too many for the memory go to disk."""

    def __init__(self, program: Program, sampling: Sampling, store: Store) -> None:
        """``program``: of the first source; the others have the same graph."""
        self.sampling, self.store = sampling, store
        self.places = _places(program)
        self.fused = set(fused_pairs(program.module))
        self.sums = _sums(program.module, self.places.keys() - self.fused)
        self._number = {n.name: k for k, n in enumerate(program.module.graph.nodes)}
        self._drawn: dict[tuple[str, int], IntArray] = {}  # positions, in the order drawn
        self._shapes: dict[tuple[str, int], torch.Size] = {}

    def order(self, batch: int, sources: int) -> list[int]:
        """In which to run the sources on a batch: what the first one makes says what is drawn."""
        owner = self.sampling.owners[batch]
        first = batch % sources if owner is None else owner
        return sorted(range(sources), key=lambda s: s != first)

    def see(self, source: int, batch: int, node: str, value: Any) -> None:
        """Keep a sample of a value, unless a norm behind it is what will be asked for."""
        if node not in self.fused:
            self._keep(source, batch, node, value)
        self._keep_sums(source, batch, node, value, self.places)

    def complete(
        self, nodes: Collection[str], programs: Sequence[Program], batches: Sequence[Batch]
    ) -> None:
        """Run the sources for the nodes that weren't seen, if there are any."""
        missing = {n for n in nodes if (n, 0) not in self._drawn}
        if not missing:
            return
        with torch.inference_mode():
            for k, batch in enumerate(batches):
                for s in self.order(k, len(programs)):

                    def see(node: fx.Node, value: Any, s: int = s, k: int = k) -> None:
                        if node.name in missing:
                            self._keep(s, k, node.name, value)
                        self._keep_sums(s, k, node.name, value, missing)

                    Runner(programs[s].module, see).run(*batch)

    def shape(self, node: str, batch: int) -> torch.Size:
        """Of a source's value; sources differ in channels at most."""
        return self._shapes[node, batch]

    def total(self, node: str, batch: int) -> int:
        """How many positions a value has."""
        shape = self._shapes[node, batch]
        return shape.numel() // max(shape[self.places[node].channel], 1)

    def at(self, node: str, batch: int, rows: int) -> IntArray:
        """At most ``rows`` positions, sorted; the same for all sources."""
        return np.sort(self._drawn[node, batch][:rows])

    def rows(self, source: int, node: str, batch: int, rows: int) -> Tensor:
        """(rows, channels) of a source at the positions :meth:`at` gives for the same number."""
        return self._first(_key(source, node), node, batch, rows)

    def summed(self, source: int, node: str, batch: int, rows: int) -> Tensor:
        """The same of the sum with a node that an activation reads; see :meth:`sums_up`."""
        return self._first(_sum_key(source, node), node, batch, rows)

    def sums_up(self, source: int, node: str) -> bool:
        """Whether sums with a node were kept."""
        batches = range(len(self.sampling.owners))
        return all(self.store.has(_sum_key(source, node), k) for k in batches)

    def _first(self, key: str, node: str, batch: int, rows: int) -> Tensor:
        drawn = self._drawn[node, batch]
        value: Tensor = self.store.get(key, batch)
        if rows >= len(drawn):
            return value
        rank = np.argsort(drawn, kind="stable")  # values lie in the order of positions
        return value[torch.from_numpy(rank < rows).to(value.device)]

    def _keep(self, source: int, batch: int, node: str, value: Any) -> None:
        place = self.places.get(node)
        if place is None or not isinstance(value, Tensor):
            return
        if (node, batch) not in self._drawn:
            total = value.numel() // max(value.shape[place.channel], 1)
            quota = min(self.sampling.quota(node, place.unknowns), total)
            rng = np.random.default_rng((self.sampling.seed, batch, self._number[node]))
            self._drawn[node, batch] = _draw(rng, _shares(value, place.channel), quota)
            self._shapes[node, batch] = value.shape
        at = np.sort(self._drawn[node, batch])
        self.store.put(_key(source, node), batch, rows_at(value.movedim(place.channel, -1), 1, at))

    def _keep_sums(
        self, source: int, batch: int, node: str, value: Any, among: Collection[str]
    ) -> None:
        """At the positions of its terms, where those have its shape."""
        for term in self.sums.get(node, ()):
            at = self._drawn.get((term, batch))
            if term not in among or at is None:
                continue
            shape = self._shapes[term, batch]
            channel = self.places[term].channel % len(shape)
            width = self.store.get(_key(source, term), batch).shape[1]
            if value.shape == (*shape[:channel], width, *shape[channel + 1 :]):
                kept = rows_at(value.movedim(channel, -1), 1, np.sort(at))
                self.store.put(_sum_key(source, term), batch, kept)


def _shares(value: Tensor, channel: int) -> FloatArray:
    """Per position, its share in the draw: the same for all, and by the distance from the mean.

    That is the mean over channels (``TELLING`` of them, evenly spread), each relative to its
    variance.
    """
    dim = channel % value.dim()
    step = -(-value.shape[dim] // TELLING)
    telling = at_least_float32(value[(slice(None),) * dim + (slice(None, None, step),)])
    rest = tuple(d for d in range(value.dim()) if d != dim)
    squares = (telling - telling.mean(rest, keepdim=True)).square_()  # var_mean takes longer
    squares *= squares.mean(rest, keepdim=True).clamp_min(TINY).reciprocal()
    distance = squares.mean(dim).flatten().double()
    usual = torch.full_like(distance, 1 / max(len(distance), 1))
    total = distance.sum()
    unusual = distance / total if bool(total > 0) and bool(total.isfinite()) else usual
    return (usual + UNUSUAL * (unusual - usual)).cpu().numpy()


def _draw(rng: np.random.Generator, shares: FloatArray, count: int) -> IntArray:
    """So many positions without replacement, one after the other (Efraimidis and Spirakis 2006)."""
    waiting = rng.exponential(size=len(shares)) / shares
    first = np.argpartition(waiting, count - 1)[:count] if count < len(shares) else slice(None)
    found = np.arange(len(shares))[first]
    return found[np.argsort(waiting[first], kind="stable")]


def _key(source: int, node: str) -> str:
    return f"source{source}:{node}"


def _sum_key(source: int, node: str) -> str:
    return f"source{source}:sum with {node}"


def _sums(module: fx.GraphModule, layers: Collection[str]) -> dict[str, list[str]]:
    """Sums that activations read, with the layers among their terms."""
    found: dict[str, list[str]] = {}
    for node in module.graph.nodes:
        next_to = behind(module, node) if node.name in layers else None
        if next_to is not None and next_to.sum is not None:
            found.setdefault(next_to.sum.name, []).append(node.name)
    return found


def fused_pairs(module: fx.GraphModule) -> dict[str, str]:
    """Layers whose only user is a batch norm that can be fitted with them, with that norm."""
    pairs = {}
    for node in module.graph.nodes:
        if len(node.users) == 1 and _fusible(module, node, next(iter(node.users))):
            pairs[node.name] = next(iter(node.users)).name
    return pairs


def _fusible(module: fx.GraphModule, layer: fx.Node, norm: fx.Node) -> bool:
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


def _places(program: Program) -> dict[str, Place]:
    module, found = program.module, {}
    pairs = fused_pairs(module)
    for node in module.graph.nodes:
        for place in _place(module, node):
            found[node.name] = place
    for layer, norm in pairs.items():
        found[norm] = Place(found[norm].channel, found[layer].unknowns)
    return found


def _place(module: fx.GraphModule, node: fx.Node) -> Iterator[Place]:
    if node.op == "call_module":
        layer: Any = module.get_submodule(str(node.target))
        channel = -1 if isinstance(layer, CHANNELS_LAST) else 1
        if contraction(layer) is not None:
            yield Place(channel, to_matrix(layer, layer.weight.detach()).shape[2])
        elif isinstance(layer, (*BATCH_NORMS, *ROW_NORMS)):
            yield Place(channel, UNKNOWNS)
    elif (scale := layer_scale(module, node)) is not None:
        yield Place(scale[1], UNKNOWNS)


def layer_scale(module: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, int] | None:
    """The parameter of a product with one factor a channel, and the channels' dim from the end."""
    operands = [n for n in node.args if isinstance(n, fx.Node)]
    scales = [n for n in operands if n.op == "get_attr"]
    if getattr(node.target, "__name__", "") != "mul" or len(operands) != 2 or len(scales) != 1:
        return None
    parameter = attribute(module, str(scales[0].target))
    channels = [d for d, n in enumerate(parameter.shape) if n > 1]
    if len(channels) != 1:
        return None
    return scales[0], channels[0] - parameter.dim()
