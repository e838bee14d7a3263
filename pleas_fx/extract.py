"""Read a group's channels out of an activation, one row a position and occurrence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from pleas_fx.ir import GroupId, IntArray, Layout
from pleas_fx.permuting import occurrences
from pleas_fx.unfold import rows_at


@dataclass(frozen=True, slots=True)
class Extractor:
    """``index`` (occurrences, channels) into the labelled dims ``dims`` of a value, flattened."""

    dims: tuple[int, ...]
    index: Tensor

    def rows(self, value: Tensor, sample: Callable[[int], IntArray] | None = None) -> Tensor:
        """(rows, channels); ``sample`` picks positions, given how many there are."""
        rest = [d for d in range(value.dim()) if d not in self.dims]
        total = int(np.prod([value.shape[d] for d in rest]))
        chosen = np.arange(total) if sample is None else sample(total)
        flat = rows_at(value.permute(*rest, *self.dims), len(self.dims), chosen).flatten(1)
        picked = flat[:, self.index.reshape(-1).to(value.device)]
        return picked.reshape(-1, self.index.shape[1])


def extractor(layout: Layout, node: str, group: GroupId) -> Extractor | None:
    """How to read ``group`` at ``node``; None where it isn't, or not as a whole."""
    for classes in layout.values.get(node, ()):
        here = (classes >= 0) & (layout.group[np.maximum(classes, 0)] == group)
        if not here.any():
            continue
        dims = tuple(d for d in range(classes.ndim) if classes.shape[d] > 1)
        flat = classes.reshape(-1)
        positions = np.flatnonzero(here.reshape(-1))
        own = flat[positions]
        rank = occurrences(own)
        channel = layout.channel[own]
        size = int((layout.group == group).sum())
        times = int(rank.max()) + 1
        if len(positions) != times * size:
            return None
        index = np.empty((times, size), np.int64)
        index[rank, channel] = positions
        return Extractor(dims, torch.from_numpy(index))
    return None


class Runner(fx.Interpreter):
    """Runs a program on a batch and shows every node's result to a callback."""

    def __init__(self, module: fx.GraphModule, see: Callable[[fx.Node, Any], None]) -> None:
        super().__init__(module)
        self.extra_traceback = False  # it would be appended to our errors
        self.see = see

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self.see(n, result)
        return result


def positions(rng: np.random.Generator, total: int, wanted: int) -> IntArray:
    """``wanted`` of ``total`` positions at random, sorted; all of them if there are no more."""
    if wanted >= total:
        return np.arange(total)
    return np.sort(rng.choice(total, wanted, replace=False))
