"""A hypothesis strategy for small random CNNs of every shape the compiler should understand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.networks import Inputs, noise
from tests.random_pieces import (
    Concat,
    Conv,
    Depthwise,
    Gate,
    Normalise,
    PixelShuffle,
    Pool,
    Residual,
    Shuffle,
    SqueezeExcite,
    Step,
    Steps,
    Transposed,
    UShape,
    build_all,
    out_all,
)
from tests.randomise import seeded
from tests.small_networks import CLASSES

LEAST, MOST = 3, 12  # channels between any two steps
START = 8  # height and width of the input
IMAGE = 3  # channels of the input

HeadKind = Literal["mean", "flatten", "dense"]


class Head(nn.Module):
    """From feature maps to outputs: by their means, with their positions, or per position."""

    def __init__(self, kind: HeadKind, channels: int, size: int) -> None:
        super().__init__()
        self.kind = kind
        if kind == "dense":
            self.last: nn.Module = nn.Conv2d(channels, CLASSES, 1)
        else:
            self.last = nn.Linear(channels * (size * size if kind == "flatten" else 1), CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "mean":
            x = x.mean((2, 3))
        elif self.kind == "flatten":
            x = torch.flatten(x, 1)
        return self.last(x)


@dataclass(frozen=True)
class RandomNetwork:
    """A random architecture. Its repr is the call that makes it again."""

    steps: Steps
    head: HeadKind

    def make(self, seed: int) -> nn.Module:
        """A network of this architecture with random parameters, in eval mode."""
        return seeded(self._build, seed)

    def inputs(self) -> Inputs:
        """A batch of two."""
        return noise((2, IMAGE, START, START))

    def batch(self, size: int, seed: int) -> Inputs:
        """Other inputs of the same kind."""
        return noise((size, IMAGE, START, START), seed=seed)

    def _build(self) -> nn.Module:
        head = Head(self.head, out_all(self.steps, IMAGE), size_after(self.steps))
        return nn.Sequential(build_all(self.steps, IMAGE), head)


def size_after(steps: Steps) -> int:
    """Height and width after some steps."""
    size = START
    for step in steps:
        if isinstance(step, Pool):
            size //= 2
        elif isinstance(step, PixelShuffle | Transposed):
            size *= 2
    return size


@st.composite
def networks(draw: st.DrawFn, max_steps: int = 5) -> RandomNetwork:
    """Random architectures: a convolution, up to ``max_steps`` steps, a head."""
    steps = draw(_rows(IMAGE, START, max_steps, depth=2, resize=True))
    kinds: list[HeadKind] = ["mean", "dense"]
    if size_after(steps) <= START:
        kinds.append("flatten")
    return RandomNetwork(steps, draw(st.sampled_from(kinds)))


@st.composite
def _rows(
    draw: st.DrawFn, channels: int, size: int, max_steps: int, depth: int, resize: bool
) -> Steps:
    """A convolution and some steps after it, each fitting what the one before leaves."""
    steps: list[Step] = [draw(_convs(channels))]
    for _ in range(draw(st.integers(0, max_steps))):
        width = out_all(tuple(steps), channels)
        step = draw(_step(width, size, depth, resize))
        size = size // 2 if isinstance(step, Pool) else size
        size = size * 2 if isinstance(step, PixelShuffle | Transposed) else size
        steps.append(step)
    return tuple(steps)


def _step(channels: int, size: int, depth: int, resize: bool) -> st.SearchStrategy[Step]:
    """Any step that fits ``channels`` channels of ``size`` by ``size`` positions."""
    options: list[st.SearchStrategy[Step]] = [_convs(channels)]
    options += _moving(channels)
    if resize:
        options += _resizing(size)
    if depth:
        options += _nesting(channels, size, depth - 1)
    return st.one_of(options)


def _widths(multiple: int = 1) -> st.SearchStrategy[int]:
    return st.sampled_from([w for w in range(LEAST, MOST + 1) if w % multiple == 0])


@st.composite
def _convs(draw: st.DrawFn, channels: int) -> Step:
    groups = draw(st.sampled_from([1, 1, *(g for g in (2, 3, 4) if channels % g == 0)]))
    return Conv(
        width=draw(_widths(groups)),
        kernel=draw(st.sampled_from([3, 1])),
        groups=groups,
        norm=draw(st.sampled_from(["batch", "group", "none"])),
        activation=draw(st.sampled_from(["relu", "silu"])),
    )


def _moving(channels: int) -> list[st.SearchStrategy[Step]]:
    """Steps that act on channels where they are, exchange them or halve their number."""
    options: list[st.SearchStrategy[Step]] = [
        st.builds(Depthwise, st.sampled_from([m for m in (1, 2) if channels * m <= MOST])),
        st.builds(Normalise, st.sampled_from(["batch", "group"])),
        st.builds(SqueezeExcite, st.integers(2, 4)),
    ]
    factors = [g for g in range(2, channels) if channels % g == 0]
    if factors:
        options.append(st.builds(Shuffle, st.sampled_from(factors)))
    if channels % 2 == 0 and channels // 2 >= LEAST:
        options.append(st.just(Gate()))
    return options


def _resizing(size: int) -> list[st.SearchStrategy[Step]]:
    """Steps that change height and width."""
    options: list[st.SearchStrategy[Step]] = []
    if size > START // 2:
        options.append(st.builds(Pool, st.sampled_from(["max", "mean"])))
    if size < START * 2:
        options.append(st.builds(PixelShuffle, st.integers(LEAST, 6)))
        options.append(st.builds(Transposed, _widths(), st.sampled_from([2, 4])))
    return options


def _nesting(channels: int, size: int, depth: int) -> list[st.SearchStrategy[Step]]:
    """Steps that contain other steps."""
    rows = partial(_rows, channels, max_steps=2, depth=depth, resize=False)
    room = MOST - channels
    options: list[st.SearchStrategy[Step]] = [
        st.builds(Residual, rows(size)),
        st.builds(Concat, _closed(rows(size), MOST // 2), _closed(rows(size), MOST // 2)),
    ]
    if room >= LEAST:
        options.append(st.builds(Concat, st.just(()), _closed(rows(size), room)))
        options.append(st.builds(UShape, _closed(rows(size // 2), room)))
    return options


def _closed(rows: st.SearchStrategy[Steps], most: int) -> st.SearchStrategy[Steps]:
    """The same steps, closed by a convolution to at most ``most`` channels."""
    last: Callable[[int], Step] = partial(Conv, kernel=1)
    return st.builds(lambda steps, w: (*steps, last(w)), rows, st.integers(LEAST, most))
