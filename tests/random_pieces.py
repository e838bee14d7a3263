"""What random networks are made of: a description of each piece, and the module it stands for.

A step is a frozen dataclass that prints as Python, so a failing example can be pasted back.
Its ``build`` takes the number of channels coming in; ``out`` says how many come out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NormKind = Literal["batch", "group", "none"]
ActivationKind = Literal["relu", "silu", "none"]


class Step(Protocol):
    """One piece of a network, for any number of input channels that suits it."""

    def out(self, channels: int) -> int:
        """Channels that come out when ``channels`` go in."""

    def build(self, channels: int) -> nn.Module:
        """The module, for ``channels`` channels coming in."""


Steps = tuple[Step, ...]


def build_all(steps: Steps, channels: int) -> nn.Sequential:
    """The modules of several steps in a row."""
    modules = []
    for step in steps:
        modules.append(step.build(channels))
        channels = step.out(channels)
    return nn.Sequential(*modules)


def out_all(steps: Steps, channels: int) -> int:
    """Channels that come out of several steps in a row."""
    for step in steps:
        channels = step.out(channels)
    return channels


def _norm(kind: NormKind, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "group":
        groups = next(g for g in (3, 2, 1) if channels % g == 0)
        return nn.GroupNorm(groups, channels)
    return nn.Identity()


def _activation(kind: ActivationKind) -> nn.Module:
    return {"relu": nn.ReLU, "silu": nn.SiLU, "none": nn.Identity}[kind]()


class SameWidth:
    """A step that keeps the number of channels."""

    def out(self, channels: int) -> int:
        return channels


@dataclass(frozen=True)
class Conv:
    """Convolution, norm, activation; ``groups`` divides both widths."""

    width: int
    kernel: int = 3
    groups: int = 1
    norm: NormKind = "batch"
    activation: ActivationKind = "relu"

    def out(self, channels: int) -> int:
        return self.width

    def build(self, channels: int) -> nn.Module:
        bias = self.norm == "none"
        conv = nn.Conv2d(
            channels,
            self.width,
            self.kernel,
            padding=self.kernel // 2,
            groups=self.groups,
            bias=bias,
        )
        return nn.Sequential(conv, _norm(self.norm, self.width), _activation(self.activation))


@dataclass(frozen=True)
class Depthwise:
    """One filter per channel, or several."""

    multiplier: int = 1

    def out(self, channels: int) -> int:
        return channels * self.multiplier

    def build(self, channels: int) -> nn.Module:
        return nn.Conv2d(channels, channels * self.multiplier, 3, padding=1, groups=channels)


@dataclass(frozen=True)
class Normalise(SameWidth):
    """A norm and a ReLU of their own, as before the convolutions of a pre-activation block."""

    norm: NormKind

    def build(self, channels: int) -> nn.Module:
        return nn.Sequential(_norm(self.norm, channels), nn.ReLU())


class _Shuffle(nn.Module):
    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.size()
        x = x.view(n, self.groups, c // self.groups, h, w).transpose(1, 2)
        return x.reshape(n, c, h, w)


@dataclass(frozen=True)
class Shuffle(SameWidth):
    """ShuffleNet's exchange of channels between groups."""

    groups: int

    def build(self, channels: int) -> nn.Module:
        return _Shuffle(self.groups)


class _Gate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=1)
        return value * gate.sigmoid()


@dataclass(frozen=True)
class Gate:
    """One half of the channels gates the other half."""

    def out(self, channels: int) -> int:
        return channels // 2

    def build(self, channels: int) -> nn.Module:
        return _Gate()


class _SqueezeExcite(nn.Module):
    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, squeezed)
        self.excite = nn.Linear(squeezed, channels)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.excite(F.relu(self.squeeze(x.mean((2, 3)))))
        return x * gate.sigmoid().unsqueeze(-1).unsqueeze(-1)


@dataclass(frozen=True)
class SqueezeExcite(SameWidth):
    """Channels scaled by a function of all channels' means."""

    squeezed: int

    def build(self, channels: int) -> nn.Module:
        return _SqueezeExcite(channels, self.squeezed)


@dataclass(frozen=True)
class Pool(SameWidth):
    """Half the height and width."""

    kind: Literal["max", "mean"] = "max"

    def build(self, channels: int) -> nn.Module:
        return nn.MaxPool2d(2) if self.kind == "max" else nn.AvgPool2d(2)


@dataclass(frozen=True)
class PixelShuffle:
    """Twice the height and width, from a convolution to four times the channels."""

    width: int

    def out(self, channels: int) -> int:
        return self.width

    def build(self, channels: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(channels, self.width * 4, 1), nn.PixelShuffle(2))


@dataclass(frozen=True)
class Transposed:
    """Twice the height and width by a transposed convolution."""

    width: int
    kernel: Literal[2, 4] = 2

    def out(self, channels: int) -> int:
        return self.width

    def build(self, channels: int) -> nn.Module:
        padding = self.kernel // 2 - 1
        return nn.ConvTranspose2d(channels, self.width, self.kernel, stride=2, padding=padding)


class _Residual(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x))


@dataclass(frozen=True)
class Residual(SameWidth):
    """Some steps and a closing convolution, added to what went in."""

    body: Steps

    def build(self, channels: int) -> nn.Module:
        last = Conv(channels, kernel=1, activation="none")
        return _Residual(build_all((*self.body, last), channels))


class _Concat(nn.Module):
    def __init__(self, left: nn.Module, right: nn.Module) -> None:
        super().__init__()
        self.left = left
        self.right = right

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.left(x), self.right(x)], 1)


@dataclass(frozen=True)
class Concat:
    """Two branches side by side; an empty one hands its input on, as in a DenseNet."""

    left: Steps
    right: Steps

    def out(self, channels: int) -> int:
        return out_all(self.left, channels) + out_all(self.right, channels)

    def build(self, channels: int) -> nn.Module:
        return _Concat(build_all(self.left, channels), build_all(self.right, channels))


class _UShape(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        low = self.body(F.max_pool2d(x, 2))
        return torch.cat([x, F.interpolate(low, scale_factor=2.0, mode="nearest")], 1)


@dataclass(frozen=True)
class UShape:
    """Down, some steps, up again, concatenated with what went in."""

    body: Steps

    def out(self, channels: int) -> int:
        return channels + out_all(self.body, channels)

    def build(self, channels: int) -> nn.Module:
        return _UShape(build_all(self.body, channels))
