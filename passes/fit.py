"""Fit every layer by least squares, in graph order, on the merged network's own activations.

One walk (DESIGN section 7): all batches at one node before the next. What the sources make there
was sampled before. A convolution and the batch norm behind it are one affine map.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

from torch import fx

from passes._affines import fit_norm, fit_scale
from passes._answers import answer
from passes._contractions import Job, fit_contractions
from passes._lockstep import MEMORY, Batch, Network, Store
from passes._rows import Rows, Settings
from passes._targets import Targets, fused_pairs, layer_scale
from passes.rewrite import Rewritten, Site
from pleas_fx.algebra.ridge import Solution
from pleas_fx.ir import LayerFit, Program
from pleas_fx.rules.modules import contraction


@dataclass(frozen=True, slots=True)
class Fitted:
    """What fitting did; the merged module was fitted in place (it belongs to the compiler)."""

    layers: tuple[LayerFit, ...]
    peak_bytes: int
    left: float  # unexplained share of the outputs' targets, the mean over their layers

    def then(self, again: Fitted) -> Fitted:
        """With layers that were fitted once more."""
        newer = {layer.name: layer for layer in again.layers}
        layers = tuple(newer.get(layer.name, layer) for layer in self.layers)
        return Fitted(layers, max(self.peak_bytes, again.peak_bytes), again.left)


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
    targets: Targets | None = None,
    memory: int = MEMORY,
    tick: Callable[[], None] = lambda: None,
) -> Fitted:
    """Solve for the weights of ``rewritten.module``, layer by layer.

    ``settings.owners`` says which source each batch belongs to; only ``settings.heads`` (nodes of
    the last layers) are fitted towards the owner's outputs, everything else to the mean.
    ``targets``: samples of the sources on the same batches; what isn't there is sampled first.

    Raises:
        CalibrationError: a value isn't finite; names batch and node.
    """
    if targets is not None:
        return _fit(programs, rewritten, batches, settings, targets, tick)
    with closing(Store(memory)) as store:
        sampling = settings.sampling(float(len(programs)))
        own = Targets(programs[0], sampling, store)
        return _fit(programs, rewritten, batches, settings, own, tick)


def _fit(
    programs: Sequence[Program],
    rewritten: Rewritten,
    batches: Sequence[Batch],
    settings: Settings,
    targets: Targets,
    tick: Callable[[], None],
) -> Fitted:
    walk = _Walk(programs, rewritten, batches, settings, targets)
    targets.complete(walk.needed, programs, batches)
    for node in programs[0].module.graph.nodes:
        walk.step(node)
        tick()
    left = sum(walk.left) / len(walk.left) if walk.left else float("nan")
    return Fitted(tuple(walk.layers), targets.store.peak, left)


class _Walk:
    def __init__(
        self,
        programs: Sequence[Program],
        rewritten: Rewritten,
        batches: Sequence[Batch],
        settings: Settings,
        targets: Targets,
    ) -> None:
        self.merged = Network(rewritten.module, batches, targets.store, "merged")
        self.rewritten = rewritten
        self.sites: Mapping[str, Site] = {site.emitted: site for site in rewritten.sites}
        self.rows = Rows(targets, self.merged, programs, settings, rewritten)
        self.norm_of = _fused_pairs(rewritten)
        self.layer_of = {norm: layer for layer, norm in self.norm_of.items()}
        self.layers: list[LayerFit] = []
        self.left: list[float] = []

    @property
    def needed(self) -> frozenset[str]:
        """Nodes of the sources that something may be fitted to."""
        layers = {site.node for name, site in self.sites.items() if name not in self.norm_of}
        scaled = {
            self.rows.origin[name]
            for name, node in self.merged.nodes.items()
            if layer_scale(self.rewritten.module, node) is not None
        }
        return frozenset((layers | scaled) & self.rows.kept.places.keys())

    def step(self, node: fx.Node) -> None:
        """What the merged graph has in place of a source's node.

        Layers with a norm behind them wait for it; all lanes of a layer are fitted together.
        """
        names = [n for n in self.rewritten.emitted[node.name] if n not in self.norm_of]
        jobs = {n: job for n in names if (job := self._job(n)) is not None}
        waiting = list(jobs.values())
        for name in names:
            if name in jobs:
                fitted = fit_contractions(self.rows, waiting)
                direct = waiting if node.name in self.rows.settings.answering else []
                self._note_all(fitted, answer(self.rows, direct))
                waiting = []
            else:
                self._one(name)
            self._run([name])

    def _run(self, names: Sequence[str]) -> None:
        """Nodes whose parameters are final, behind the layers that waited for them."""
        for name in names:
            if name in self.layer_of:
                self.merged.run(self.layer_of[name])
            self.merged.run(name)

    def _job(self, name: str) -> Job | None:
        """The contraction that is fitted when a node's turn comes."""
        site = self.sites.get(name)
        if site is not None and name in self.layer_of:
            return Job(self.sites[self.layer_of[name]], site)
        node = self.merged.nodes[name]
        if site is None or node.op != "call_module":
            return None
        entry = contraction(self.rows.module(site))
        fits = entry is not None and self.rows.aligned(site.node, entry.channel)
        return Job(site, None) if fits else None

    def _one(self, name: str) -> None:
        site: Site | None = self.sites.get(name)
        if site is None:
            site, solution = fit_scale(self.rows, name, self.sites)
        elif self.merged.nodes[name].op == "call_module":
            solution = fit_norm(self.rows, site)
        else:
            return
        if site is not None and solution is not None:
            self._note(site, solution, solution.residual, solution.status)

    def _note_all(
        self, fitted: Sequence[tuple[Job, Solution]], answered: Mapping[str, float]
    ) -> None:
        for job, solution in fitted:
            if job.site.module in answered:
                self._note(job.site, solution, answered[job.site.module], "answers")
            else:
                self._note(job.site, solution, solution.residual, solution.status)

    def _note(self, site: Site, found: Solution, residual: float, status: str) -> None:
        if site.node in self.rows.settings.heads:
            known = self.rows.settings.folds == 1 or status == "answers"
            self.left.append(residual if known else _unseen(residual, found))
        self.layers.append(
            LayerFit(
                site.module,
                residual,
                found.rows,
                found.weight.shape[-1],
                found.condition,
                found.rank,
                status,
            )
        )


def _unseen(residual: float, found: Solution) -> float:
    """What least squares leave of other rows, about (generalised cross-validation)."""
    share = found.weight.shape[-1] / max(found.rows, 1)
    return min(residual / (1 - share) ** 2, 1.0) if share < 1 else 1.0


def _fused_pairs(rewritten: Rewritten) -> dict[str, str]:
    """Layers of the merged graph that are fitted together with the batch norm behind them."""
    sites = {site.emitted for site in rewritten.sites}
    pairs = fused_pairs(rewritten.module)
    return {layer: norm for layer, norm in pairs.items() if layer in sites and norm in sites}
