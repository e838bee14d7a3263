"""Literal sizes in a graph (view, split, slices …), restated for one lane of the merged network.

An entry gets the node's arguments and a ``Counter`` that knows, per labelled dim, how many of a
source's first ``n`` positions the lane has. What an entry can't restate stays as it is; the
labels of the rewritten graph show whether that was right.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from pleas_fx.ir import IntArray

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Counter:
    """Counts lane positions on the source's labelled dims, before and after a node."""

    before: tuple[IntArray, ...]  # per coordinate: 1 where the lane has the position's class
    after: tuple[IntArray, ...]
    number: Callable[[Any], Any] = lambda value: value  # the source's, for a node that is one
    value: Callable[[Any], Any] = lambda value: value  # the lane's

    def labelled_in(self, dim: int, rank: int) -> bool:
        return _along(self.before, dim, rank) is not None

    def first_in(self, dim: int, n: int) -> int:
        """How many of the first ``n`` positions of an input dim the lane has."""
        kept = _along(self.before, dim, _rank(self.before))
        return n if kept is None else int(kept[:n].sum())

    def restated(self, dim: int, size: Any) -> Any:
        """The lane's size of an output dim, for what gives the source's.

        What the code computes stays where it is right in the lane: it may know more than a lane
        does (the batch). Read off other channels, of which the source has as many, it is wrong.
        """
        kept = _along(self.after, dim, _rank(self.after))
        if kept is None:
            return size
        if isinstance(size, int):
            return int(kept.sum()) if size > 1 else size
        wrong = self.number(size) == len(kept) and self.value(size) != kept.sum()
        return int(kept.sum()) if wrong else size

    @property
    def rank(self) -> int:
        return _rank(self.before)


def _rank(coordinates: tuple[IntArray, ...]) -> int:
    return coordinates[0].ndim if coordinates else 0


def _along(coordinates: tuple[IntArray, ...], dim: int, rank: int) -> IntArray | None:
    for kept in coordinates:
        if rank and kept.shape[dim % rank] > 1:
            others = tuple(d for d in range(rank) if d != dim % rank)
            return np.asarray(kept.any(axis=others)).astype(np.int64)
    return None


def _sizes(args: Args, counter: Counter, skip: int) -> Args:
    """``view``-like: the sizes of labelled output dims."""
    nested = len(args) == skip + 1 and isinstance(args[skip], (list, tuple, torch.Size))
    sizes = list(args[skip]) if nested else list(args[skip:])
    sizes = [counter.restated(dim, size) for dim, size in enumerate(sizes)]
    return (*args[:skip], sizes) if nested else (*args[:skip], *sizes)


def view(args: Args, kwargs: Kwargs, counter: Counter) -> tuple[Args, Kwargs]:
    """Sizes of a view, reshape or expand."""
    return _sizes(args, counter, 1), kwargs


def unflatten(args: Args, kwargs: Kwargs, counter: Counter) -> tuple[Args, Kwargs]:
    """Sizes that one dim is unfolded into."""
    x, dim, sizes = args[0], int(args[1]), list(args[2])
    rank = counter.rank
    if rank:
        sizes = [counter.restated(dim % rank + k, size) for k, size in enumerate(sizes)]
    return (x, dim, tuple(sizes), *args[3:]), kwargs


def split(args: Args, kwargs: Kwargs, counter: Counter) -> tuple[Args, Kwargs]:
    """Sections of a split along a labelled dim."""
    return _split(args, kwargs, counter, _sections)


def chunk(args: Args, kwargs: Kwargs, counter: Counter) -> tuple[Args, Kwargs]:
    """Equal parts become sections of the sizes that the lane has."""
    return _split(args, kwargs, counter, _chunks)


def _split(
    args: Args, kwargs: Kwargs, counter: Counter, bounds: Callable[[Any, int], list[int]]
) -> tuple[Args, Kwargs]:
    x, how = (
        args[0],
        args[1]
        if len(args) > 1
        else next(
            kwargs[k] for k in ("split_size_or_sections", "split_size", "chunks") if k in kwargs
        ),
    )
    dim = int(args[2] if len(args) > 2 else kwargs.get("dim", 0))
    kept = _along(counter.before, dim, counter.rank)
    if kept is None:
        return args, kwargs
    several = isinstance(how, (list, tuple))
    known = [counter.number(n) for n in (how if several else [how])]
    if not all(isinstance(n, int) for n in known):
        return args, kwargs
    edges = np.cumsum([0, *bounds(known if several else known[0], len(kept))])
    sections = [int(kept[a:b].sum()) for a, b in pairwise(edges)]
    return (x, sections, dim), {}


def _sections(how: Any, size: int) -> list[int]:
    if isinstance(how, int):
        return [min(how, size - at) for at in range(0, size, how)]
    return list(how)


def _chunks(how: Any, size: int) -> list[int]:
    return _sections(-(-size // int(how)), size)


def item(args: Args, kwargs: Kwargs, counter: Counter) -> tuple[Args, Kwargs]:
    """Slices on labelled dims: ``x[:, a:b]``."""
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    if Ellipsis in [i for i in index if i is Ellipsis] or any(i is None for i in index):
        return args, kwargs
    new = []
    for dim, i in enumerate(index):
        if isinstance(i, slice) and counter.labelled_in(dim, counter.rank):
            i = slice(_bound(i.start, dim, counter), _bound(i.stop, dim, counter), i.step)
        new.append(i)
    return (args[0], tuple(new) if isinstance(args[1], tuple) else new[0]), kwargs


def _bound(value: Any, dim: int, counter: Counter) -> Any:
    value = counter.number(value)
    if not isinstance(value, int):
        return value
    kept = _along(counter.before, dim, counter.rank)
    assert kept is not None
    return counter.first_in(dim, value if value >= 0 else len(kept) + value)


def narrow(args: Args, kwargs: Kwargs, counter: Counter) -> tuple[Args, Kwargs]:
    """Start and length along a labelled dim."""
    x, dim, start, length = args
    if counter.labelled_in(dim, counter.rank):
        start, length = counter.number(start), counter.number(length)
    if not (isinstance(start, int) and isinstance(length, int)):
        return args, kwargs
    first = counter.first_in(dim, start)
    return (x, dim, first, counter.first_in(dim, start + length) - first), kwargs


Relayout = Callable[[Args, Kwargs, Counter], tuple[Args, Kwargs]]

SPLITS: frozenset[Any] = frozenset({"split", "chunk", "split_with_sizes", torch.split, torch.chunk})

RELAYOUT: dict[Any, Relayout] = {
    "view": view,
    "reshape": view,
    "expand": view,
    torch.reshape: view,
    "unflatten": unflatten,
    torch.unflatten: unflatten,
    "split": split,
    "split_with_sizes": split,
    torch.split: split,
    "chunk": chunk,
    torch.chunk: chunk,
    operator.getitem: item,
    "narrow": narrow,
    torch.narrow: narrow,
}

STRETCHES: frozenset[Any] = frozenset({operator.getitem, "narrow", torch.narrow})

SPLIT_TARGETS: dict[Any, Any] = {"chunk": "split", torch.chunk: torch.split}
