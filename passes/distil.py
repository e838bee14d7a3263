"""Train all layers of a fitted network together, towards what the sources answer: no labels.

Layer by layer, least squares meet what the sources' layers make; which of a layer's errors the rest
would bear only the outputs tell (docs/decisions/2026-12-01-distil.md). Knowledge distillation
(Hinton, Vinyals and Dean 2015) by Adam (Kingma and Ba 2015), with a step of each tensor relative to
its size. Unless images held out say that something was won, all is as it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from passes._answers import classifies, divergence, wanted_logits
from passes._lockstep import Batch, Network, Store
from passes._rows import Rows, Settings
from passes._targets import Targets
from passes.rewrite import Rewritten, Site
from pleas_fx.extract import Runner
from pleas_fx.ir import IntArray, Program
from pleas_fx.unfold import rows_at

RATE = 0.05  # of a weight's size, over the root of how many make one output: the largest step
WARM = 0.1  # of the steps, of growing size: the first say little of how far to go
LARGEST = 0.01  # of the size of what is no weight, a bias say
SMALLEST = 0.1  # of that of all tensors: what smaller ones count as
IMAGES = 128  # of a step, at least
CONSTANT = 1e-3  # of the mean variance of a layer's outputs: what lesser ones count as
TINY = 1e-12


@dataclass(frozen=True, slots=True)
class Distilled:
    """The steps taken, 0 where they won nothing, and what is left on images held out.

    Of answers: how much less the sources give to them than to their own. Of other outputs: their
    squared error relative to their variance. The mean over last layers.
    """

    steps: int
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class Distil:
    """Options of the pass."""

    name: str = "distil"
    steps: int = 300

    def run(
        self,
        programs: Sequence[Program],
        rewritten: Rewritten,
        batches: Sequence[Batch],
        held: Sequence[int],
        settings: Settings,
    ) -> Distilled:
        return distil(programs, rewritten, batches, held, settings, self.steps)


def distil(
    programs: Sequence[Program],
    rewritten: Rewritten,
    batches: Sequence[Batch],
    held: Sequence[int],
    settings: Settings,
    steps: int,
    *,
    tick: Callable[[int], None] = lambda _: None,
) -> Distilled:
    """Train ``rewritten.module`` in place, on all batches but those ``held`` out.

    Last layers go towards what :func:`passes.fit.fit` fits them to.

    Raises:
        RuntimeError: no layer that is fitted makes an output, torch can't differentiate the
            network, or lacks memory.
    """
    network = _Network(rewritten.module, _heads(programs, rewritten, batches, settings), batches)
    if not network.heads:
        raise RuntimeError("no layer that is fitted makes an output")
    before, state = network.judged(held), network.state()
    training = [k for k in range(len(batches)) if k not in set(held)]
    order = _order(training, batches, settings)
    with network.trainable(rewritten.sites) as parameters, torch.enable_grad():
        optimiser = torch.optim.Adam(_rated(parameters))
        paced = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _pace(step / steps))
        for step in range(1, steps + 1):
            optimiser.zero_grad()
            network.descend(next(order))
            optimiser.step()
            paced.step()
            tick(step)
    after = network.judged(held)
    if not after < before:
        network.module.load_state_dict(state)
        return Distilled(0, before[0], before[0])
    return Distilled(steps, before[0], after[0])


@dataclass(frozen=True, slots=True)
class _Head:
    """What a last layer is to answer."""

    channel: int  # dim of its value
    at: Mapping[int, IntArray]  # per batch, positions of its value
    wanted: Mapping[int, Tensor]  # per batch, (rows, outputs): probabilities, or values
    variance: Tensor | None  # (outputs,) of the values; None: they are of classes

    def loss(self, value: Tensor, batch: int) -> Tensor:
        """Of its value on a batch: squared error, or how far answers diverge, in nats."""
        made, wanted = self._rows(value, batch)
        if self.variance is not None:
            return ((made - wanted).square() / self.variance.to(made)).mean()
        return divergence(wanted, made.log_softmax(1))

    def left(self, value: Tensor, batch: int) -> Tensor:
        """As :class:`Distilled` has it: of answers, what counts is which they are."""
        if self.variance is not None:
            return self.loss(value, batch)
        made, wanted = self._rows(value, batch)
        given = wanted.gather(1, made.argmax(1, keepdim=True)).squeeze(1)
        return (wanted.amax(1) - given).mean()

    def _rows(self, value: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        made = rows_at(value.movedim(self.channel, -1), 1, self.at[batch])
        return made, self.wanted[batch].to(made)


def _heads(
    programs: Sequence[Program],
    rewritten: Rewritten,
    batches: Sequence[Batch],
    settings: Settings,
) -> dict[str, _Head]:
    """By their nodes in the merged graph: the last layers that lead to outputs."""
    with closing(Store()) as store:
        kept = Targets(programs[0], settings.sampling(float(len(programs))), store)
        merged = Network(rewritten.module, batches, store, "merged")
        rows = Rows(kept, merged, programs, settings, rewritten)
        known = settings.heads & kept.places.keys()
        sites = [site for site in rewritten.sites if site.node in known]
        followed = {n.name for s in sites for n in merged.nodes[s.emitted].all_input_nodes}
        last = [site for site in sites if site.emitted not in followed]
        last = [s for s in last if rows.aligned(s.node, kept.places[s.node].channel)]
        kept.complete({site.node for site in last}, programs, batches)
        return {site.emitted: _head(rows, site) for site in last}


def _head(rows: Rows, site: Site) -> _Head:
    place = rows.kept.places[site.node]
    at = rows.sample_at(site.node, rows.batches(site), place.unknowns)
    logits = {k: wanted_logits(rows, site, k, len(p)) for k, p in at.items()}
    if site.node in rows.settings.answering and classifies(torch.cat(list(logits.values()))):
        return _Head(place.channel, at, {k: t.softmax(1) for k, t in logits.items()}, None)
    values = {k: rows.targets([site], k, len(p))[0].double() for k, p in at.items()}
    variance = torch.cat(list(values.values())).var(0, correction=0)
    floor = TINY + variance.mean() * CONSTANT
    return _Head(place.channel, at, values, variance.clamp_min(floor))


Of = Callable[[_Head, Tensor, int], Tensor]  # of a head: its value, the batch


@dataclass(frozen=True, slots=True)
class _Network:
    """The network, its batches, and what it is to answer."""

    module: fx.GraphModule
    heads: Mapping[str, _Head]
    batches: Sequence[Batch]

    def over_heads(self, batch: int, of: Of) -> Tensor:
        """The mean over the heads that a batch is for."""
        parts: list[Tensor] = []

        def see(node: fx.Node, value: Tensor) -> None:
            head = self.heads.get(node.name)
            if head is not None and batch in head.wanted:
                parts.append(of(head, value, batch))

        Runner(self.module, see).run(*self.batches[batch])
        return torch.stack(parts).mean() if parts else torch.zeros(())

    def judged(self, batches: Sequence[int]) -> tuple[float, float]:
        """What is left, and the loss: the mean over their examples."""
        with torch.inference_mode():
            return self._mean(batches, _Head.left), self._mean(batches, _Head.loss)

    def _mean(self, batches: Sequence[int], of: Of) -> float:
        sizes = [len(self.batches[k][0]) for k in batches]
        each = [float(self.over_heads(k, of)) for k in batches]
        return float(np.average(each, weights=sizes)) if sizes else 0.0

    def descend(self, batches: Sequence[int]) -> None:
        """Add up the gradients of the mean loss over the examples of some batches."""
        total = sum(len(self.batches[k][0]) for k in batches)
        for k in batches:
            loss = self.over_heads(k, _Head.loss)
            if loss.requires_grad:
                (loss * (len(self.batches[k][0]) / total)).backward()

    def state(self) -> dict[str, Tensor]:
        """A copy of all parameters and buffers."""
        return {name: value.clone() for name, value in self.module.state_dict().items()}

    @contextmanager
    def trainable(self, sites: Sequence[Site]) -> Iterator[list[nn.Parameter]]:
        """The parameters of the layers that were fitted; no other has a gradient inside."""
        fitted = {site.module for site in sites}
        parameters = [
            parameter
            for name, parameter in self.module.named_parameters()
            if {name, name.rpartition(".")[0]} & fitted and parameter.is_floating_point()
        ]
        self.module.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        try:
            yield parameters
        finally:
            self.module.zero_grad()
            self.module.requires_grad_(False)


def _order(
    training: Sequence[int], batches: Sequence[Batch], settings: Settings
) -> Iterator[list[int]]:
    """The batches of each step: owner by owner in turn, each owner's in an order drawn anew."""
    rng = np.random.default_rng(settings.seed)
    own: dict[int | None, list[int]] = {}
    for k in training:
        own.setdefault(settings.owners[k], []).append(k)
    waiting: dict[int | None, list[int]] = {owner: [] for owner in own}
    while True:
        step: list[int] = []
        while sum(len(batches[k][0]) for k in step) < IMAGES:
            for owner, queue in waiting.items():
                if not queue:
                    queue += rng.permutation(own[owner]).tolist()
                step.append(queue.pop())
        yield step


def _rated(parameters: Sequence[nn.Parameter]) -> list[dict[str, Any]]:
    """Each with a rate relative to its size (root mean square).

    The more weights make an output, the less each moves (Yang and Hu 2021): steps add up there.
    """
    sizes = [float(p.detach().double().square().mean().sqrt()) for p in parameters]
    usual = math.sqrt(fmean(size**2 for size in sizes)) if sizes else 0.0
    return [
        {"params": [p], "lr": _share(p) * max(size, SMALLEST * usual)}
        for p, size in zip(parameters, sizes, strict=True)
    ]


def _share(parameter: Tensor) -> float:
    weights = parameter[0].numel() if parameter.dim() > 1 else 1
    return min(LARGEST, RATE / math.sqrt(weights))


def _pace(done: float) -> float:
    """The size of a step, relative to the largest; ``done``: the share of steps before it."""
    grown = min((done + 0.01) / (WARM + 0.01), 1.0)
    return grown * (1 + math.cos(math.pi * done)) / 2
