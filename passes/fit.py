"""Fit every layer by least squares, in graph order, on the merged network's own activations.

One walk (DESIGN section 7): all batches at one node before the next, the sources and the merged
network side by side. A convolution and the batch norm behind it are one affine map.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from passes._lockstep import MEMORY, Batch, Network, Store
from passes._solve import Fitter, Settings, fusible
from passes.rewrite import Rewritten, Site
from pleas_fx.ir import LayerFit, Program


@dataclass(frozen=True, slots=True)
class Fitted:
    """What fitting did; the merged module was fitted in place (it belongs to the compiler)."""

    layers: tuple[LayerFit, ...]
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Fit:
    """Options of the pass."""

    name: str = "fit"
    ridge: float = 1e-4
    rows_per_unknown: int = 8
    memory: int = MEMORY
    seed: int = 0

    def run(
        self,
        programs: Sequence[Program],
        rewritten: Rewritten,
        batches: Sequence[Batch],
        owners: Sequence[int | None],
        heads: frozenset[str],
    ) -> Fitted:
        settings = Settings(self.ridge, self.rows_per_unknown, self.seed, tuple(owners), heads)
        return fit(programs, rewritten, batches, settings, memory=self.memory)


def fit(
    programs: Sequence[Program],
    rewritten: Rewritten,
    batches: Sequence[Batch],
    settings: Settings,
    *,
    memory: int = MEMORY,
    tick: Callable[[], None] = lambda: None,
) -> Fitted:
    """Solve for the weights of ``rewritten.module``, layer by layer.

    ``settings.owners`` says which source each batch belongs to; only ``settings.heads`` (nodes of
    the last layers) are fitted to the owner's outputs, everything else to the mean.

    Raises:
        CalibrationError: a value isn't finite; names batch and node.
    """
    store = Store(memory)
    try:
        walk = _Walk(programs, rewritten, batches, settings, store)
        for node in programs[0].module.graph.nodes:
            walk.step(node)
            tick()
        return Fitted(tuple(walk.fitter.layers), store.peak)
    finally:
        store.close()


class _Walk:
    def __init__(
        self,
        programs: Sequence[Program],
        rewritten: Rewritten,
        batches: Sequence[Batch],
        settings: Settings,
        store: Store,
    ) -> None:
        self.sources = [
            Network(p.module, batches, store, f"source{s}") for s, p in enumerate(programs)
        ]
        self.merged = Network(rewritten.module, batches, store, "merged")
        self.rewritten = rewritten
        self.sites: Mapping[str, Site] = {site.emitted: site for site in rewritten.sites}
        origin = {n: source for source, made in rewritten.emitted.items() for n in made}
        self.fitter = Fitter(self.sources, self.merged, programs, settings, origin)
        self.norm_of = _fused_pairs(programs[0], rewritten)

    def step(self, node: fx.Node) -> None:
        """One node of the sources' graph, and what the merged graph has in its place."""
        for source in self.sources:
            if node.op != "output":
                source.hold(node.name)
                source.run(node.name)
        for name in self.rewritten.emitted[node.name]:
            if name in self.norm_of:
                continue  # fitted and run together with its norm
            self._one(name)
        for source in self.sources:
            if node.op != "output":
                source.release(node.name)

    def _one(self, name: str) -> None:
        site = self.sites.get(name)
        layer = self._layer_before(name)
        if layer is not None and site is not None:
            self.fitter.fused(self.sites[layer], site)
            self.merged.run(layer)
        elif site is not None:
            self.fitter.single(site)
        else:
            self.fitter.scale(name, self.sites)
        self.merged.run(name)

    def _layer_before(self, norm: str) -> str | None:
        return next((layer for layer, n in self.norm_of.items() if n == norm), None)


def _fused_pairs(program: Program, rewritten: Rewritten) -> dict[str, str]:
    """Layers of the merged graph whose only user is a batch norm, with that norm."""
    sites = {site.emitted: site for site in rewritten.sites}
    pairs = {}
    for node in rewritten.module.graph.nodes:
        if node.name not in sites or len(node.users) != 1:
            continue
        user = next(iter(node.users))
        if user.name in sites and fusible(rewritten.module, node, user):
            pairs[node.name] = user.name
    return pairs
