"""Tiny networks, one for each use of an operator, and the groups that each must have.

Layers ``a`` (and ``c``, ``d`` where they say so) read the network's input of 2 channels, ``b``
makes its output of 3. Sizes are odd and distinct, so that nothing is tied by accident.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Forward = Callable[[Any, Tensor], Any]

IMAGE = (2, 2, 5, 7)
ONE = (1, 2, 5, 7)
SHAPES = {1: (2, 2, 9), 2: IMAGE, 3: (2, 2, 5, 7, 4)}
CONVS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class Net(nn.Module):
    """A network whose forward is a function of itself and its input."""

    def __init__(self, function: Forward, **members: Any) -> None:
        super().__init__()
        self.function = function
        for name, member in members.items():
            if isinstance(member, nn.Module | nn.Parameter):
                setattr(self, name, member)
            else:
                self.register_buffer(name, member)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


@dataclass(frozen=True)
class Case:
    """A network, its movable groups and its frozen axes, the network's own output aside.

    ``groups``: sizes, blocks as count x inner. ``unused``: sizes of groups that no output depends
    on. ``inert``: axes whose entries change no output, such as a bias before a normalisation.
    ``needless``: frozen groups that could move (by themselves, or with ``+`` together), with a
    rule that knew more.
    """

    name: str
    build: Callable[[], nn.Module]
    groups: str
    frozen: str = "a.weight.1"
    shape: tuple[int, ...] = IMAGE
    unused: str = ""
    inert: str = ""
    needless: str = ""

    def __str__(self) -> str:
        return self.name


def conv(c_in: int, c_out: int, kernel: int = 1, **options: Any) -> nn.Conv2d:
    """A convolution, 1x1 unless told otherwise."""
    return nn.Conv2d(c_in, c_out, kernel, **options)


def net(function: Forward, **members: Callable[[], Any]) -> Callable[[], nn.Module]:
    """Builds a network with fresh members."""
    return lambda: Net(function, **{name: member() for name, member in members.items()})


def between(
    operation: Forward, channels_: int = 5, after_: int = 0, **members: Callable[[], Any]
) -> Callable[[], nn.Module]:
    """``a``, the operation, ``b``; ``after_``: channels that the operation makes of them."""
    return net(
        lambda s, x: s.b(operation(s, s.a(x))),
        a=lambda: conv(2, channels_),
        b=lambda: conv(after_ or channels_, 3),
        **members,
    )


def two(
    operation: Callable[[Tensor, Tensor], Tensor], left: int = 5, right: int = 5, after: int = 5
) -> Callable[[], nn.Module]:
    """``a`` and ``c`` beside each other, an operation on both, ``b``."""
    return net(
        lambda s, x: s.b(operation(s.a(x), s.c(x))),
        a=lambda: conv(2, left),
        c=lambda: conv(2, right),
        b=lambda: conv(after, 3),
    )


def sampled_heads(values: Tensor, places: Tensor) -> Tensor:
    """Three heads, each read at places of its own (deformable attention)."""
    images = values.reshape(-1, 2, 5, 7)
    grid = places.reshape(-1, 2, 5, 7).permute(0, 2, 3, 1).tanh()
    return F.grid_sample(images, grid, align_corners=False).reshape(-1, 6, 5, 7)


def sampled_volume(values: Tensor, places: Tensor) -> Tensor:
    """In three dims, of which one is a single slice."""
    grid = places[:, :, None].movedim(1, -1).tanh()
    return F.grid_sample(values[:, :, None], grid, align_corners=False)[:, :, 0]


def unpooled_volume(_: Any, x: Tensor) -> Tensor:
    """In three dims, of which one is a single slice."""
    pooled = F.max_pool3d(x[:, :, None], (1, 2, 2), return_indices=True)
    return F.max_unpool3d(*pooled, (1, 2, 2), (1, 2, 2), 0, (1, 5, 7))[:, :, 0]


def sampled_points(values: Tensor, places: Tensor) -> Tensor:
    """Every place reads at three points, and sums up."""
    grid = places.reshape(-1, 3, 2, 35).permute(0, 3, 1, 2).tanh()
    return (
        F.grid_sample(values, grid, align_corners=False).sum(3).reshape(-1, values.shape[1], 5, 7)
    )


def parts(operation: Forward, *sizes: int) -> Callable[[], nn.Module]:
    """``a``, parts of its output, ``b`` and ``c`` on a part each."""

    def function(s: Any, x: Tensor) -> Tensor:
        first, second = operation(s, s.a(x))
        return s.b(first) + s.c(second)

    return net(
        function,
        a=lambda: conv(2, sum(sizes)),
        b=lambda: conv(sizes[0], 3),
        c=lambda: conv(sizes[1], 3),
    )


def spatial(operation: Forward, dims: int, name: str) -> Case:
    """An operation that leaves channels alone, in a network of 1 to 3 spatial dims."""
    build = net(
        lambda s, x: s.b(operation(s, s.a(x))),
        a=lambda: CONVS[dims](2, 5, 1),
        b=lambda: CONVS[dims](5, 3, 1),
    )
    return Case(f"{name}-{dims}d", build, "5", shape=SHAPES[dims])


def head(operation: Forward, features: int = 5) -> Callable[[], nn.Module]:
    """``a``, an operation, and a linear ``b``."""
    return net(
        lambda s, x: s.b(operation(s, s.a(x))),
        a=lambda: conv(2, 5),
        b=lambda: nn.Linear(features, 3),
    )


BOTH = "a.weight.1 c.weight.1"  # of two layers that read the network's input
CUT_OFF = "a.weight.0 a.weight.1 a.bias.0 b.weight.1"  # nothing between input and output moves

MOVEMENT = [
    Case("view", between(lambda s, x: x.view(x.shape[0], 5, -1).view(x.shape[0], 5, 5, 7)), "5"),
    Case("permute", between(lambda s, x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2)), "5"),
    Case("transpose", between(lambda s, x: x.transpose(2, 3)), "5"),
    Case("movedim", between(lambda s, x: x.movedim(1, -1).movedim(-1, 1)), "5"),
    Case("squeeze", head(lambda s, x: x.mean((2, 3), keepdim=True).squeeze(-1).squeeze(-1)), "5"),
    Case("flatten", head(lambda s, x: x.flatten(1), 175), "5"),
    Case("cat", two(lambda p, q: torch.cat([p, q], 1), 3, 5, 8), "3 5", BOTH),
    Case("cat-twice", between(lambda s, x: torch.cat([x, x.relu()], 1), 5, 10), "5"),
    Case("cat-positions", two(lambda p, q: torch.cat([p, q], 2)), "5", BOTH),
    Case("cat-batch", two(lambda p, q: torch.cat([p, q], 0)), "5", BOTH),
    Case("cat-zeros", between(lambda s, x: torch.cat([x.new_zeros(2, 5, 1, 7), x], 2)), "5"),
    Case(
        "cat-varying",
        between(
            lambda s, x: torch.cat([s.g.to(x).expand(len(x), 5, 1, 7), x], 2),
            g=lambda: torch.arange(5).view(1, 5, 1, 1),
        ),
        "",
        CUT_OFF,
    ),
    Case(
        "cat-input",
        net(
            lambda s, x: s.b(torch.cat([s.a(x), x], 1)),
            a=lambda: conv(2, 3),
            b=lambda: conv(5, 3),
        ),
        "3",
        "a.weight.1 b.weight.1",
    ),
    Case(
        "cat-buffer",
        between(lambda s, x: torch.cat([x, s.g], 1), 3, 5, g=lambda: torch.rand(1, 2, 5, 7)),
        "2 3",
        "a.weight.1 g.2 g.3",
        shape=ONE,
    ),
    Case("chunk", parts(lambda s, x: x.chunk(2, 1), 4, 4), "4 4"),
    Case("chunk-odd", parts(lambda s, x: x.chunk(2, 1), 4, 3), "4 3"),
    Case(
        "chunk-gate",
        between(lambda s, x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1].sigmoid(), 10, 5),
        "5",
    ),
    Case("split", parts(lambda s, x: x.split([3, 5], 1), 3, 5), "3 5"),
    Case("narrow", between(lambda s, x: x.narrow(1, 1, 5), 7, 5), "2 5", unused="2"),
    Case("slice", between(lambda s, x: x[:, :5, 1:, ::2], 7, 5), "5 2", unused="2"),
    Case("slice-step", between(lambda s, x: x[:, ::2], 7, 4), "4 3", unused="3"),
    Case("stack-sum", two(lambda p, q: torch.stack([p, q], 1).sum(1)), "5", BOTH),
    Case(
        "stack-interleave",
        two(lambda p, q: torch.stack([p, q], 2).flatten(1, 2), 5, 5, 10),
        "5",
        BOTH,
    ),
    Case("unbind", between(lambda s, x: torch.stack(x.unbind(2), 2)), "5"),
    Case("pad", between(lambda s, x: F.pad(x, (1, 2, 0, 3))), "5"),
    Case(
        "pad-channels", between(lambda s, x: F.pad(x, (0, 0, 0, 0, 1, 2)), 5, 8), "5 3", unused="3"
    ),
    Case(
        "pad-channels-add",
        two(lambda p, q: F.pad(p, (0, 0, 0, 0, 0, 2)) + q, 3, 5),
        "3 2",
        BOTH,
    ),
    Case("pixel-shuffle", between(lambda s, x: F.pixel_shuffle(x, 2), 20, 5), "5"),
    Case("pixel-unshuffle", between(lambda s, x: F.pixel_unshuffle(x[..., :4, :6], 2), 3, 12), "3"),
    Case("channel-shuffle", between(lambda s, x: F.channel_shuffle(x, 3), 15), "15"),
    Case(
        "shuffle-by-views",
        between(lambda s, x: x.view(-1, 3, 5, 5, 7).transpose(1, 2).reshape(-1, 15, 5, 7), 15),
        "15",
    ),
    Case("roll-positions", between(lambda s, x: x.roll((1, 2), (2, 3))), "5"),
    Case("roll-channels", between(lambda s, x: x.roll(2, 1)), "5"),
    Case("roll-channels-add", between(lambda s, x: x + x.roll(2, 1)), "1"),
    Case("flip", between(lambda s, x: x.flip(1, 3)), "5"),
    Case("flip-add", between(lambda s, x: x + x.flip(1)), "2 1"),
    Case("rot90", between(lambda s, x: torch.rot90(x, 1, (2, 3))), "5"),
    Case("expand", between(lambda s, x: x.mean((2, 3), keepdim=True).expand(-1, -1, 5, 7)), "5"),
    Case("repeat", between(lambda s, x: x.repeat(1, 2, 1, 1), 3, 6), "3"),
    Case("repeat-interleave", between(lambda s, x: x.repeat_interleave(2, 1), 3, 6), "3"),
    Case("index", between(lambda s, x: x[:, [4, 2, 0, 1, 3]]), "5"),
    Case("windows", between(lambda s, x: x.unfold(2, 3, 2).mean(-1)), "5"),
    Case("im2col", between(lambda s, x: F.unfold(x, 3).view(x.shape[0], 27, 3, 5), 3, 27), "3"),
    Case("col2im", between(lambda s, x: F.fold(F.unfold(x, 3, 1, 1), (5, 7), 3, padding=1)), "5"),
    Case(
        "grid-sample",
        two(lambda p, q: F.grid_sample(p, q.permute(0, 2, 3, 1).tanh(), align_corners=False), 5, 2),
        "5",
        "c.weight.0 c.bias.0 " + BOTH,
    ),
    Case("grid-sample-volume", two(sampled_volume, 5, 3), "5", "c.weight.0 c.bias.0 " + BOTH),
    Case("sampled-heads", two(sampled_heads, 6, 6, 6), "3x2 3x1", BOTH),
    Case("sampled-points", two(sampled_points, 5, 6), "5 3", BOTH),
    Case(
        "max-unpool",
        between(
            lambda s, x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2, 2, 0, (5, 7))
        ),
        "5",
    ),
    Case("max-unpool-volume", between(unpooled_volume), "5"),
    Case(
        "places-of-maxima",
        between(lambda s, x: F.max_pool2d(x, 2, return_indices=True)[1].double()),
        "5",
        inert="a.bias.0",
    ),
    Case(
        "scatter-positions",
        between(lambda s, x: torch.slice_scatter(x, x[:, :, 1::2] * 2, 2, 1, 5, 2)),
        "5",
    ),
    Case(
        "scatter-into-zeros",
        between(lambda s, x: torch.slice_scatter(torch.zeros_like(x), x[:, :, :2], 2, 1, 3)),
        "5",
    ),
    Case(
        "scatter-channels",
        two(lambda p, q: torch.slice_scatter(p, p[:, ::2] + q, 1, 0, 6, 2), 6, 3, 6),
        "3 3",
        BOTH,
    ),
    Case(
        "scatter-alike",
        between(
            lambda s, x: torch.slice_scatter(x, torch.arange(7.0) + x[:, :, ::2] * 0, 2, 0, 5, 2)
        ),
        "5",
    ),
    Case(
        "scatter-unlike",
        between(
            lambda s, x: torch.slice_scatter(x, torch.ones_like(x).cumsum(1)[:, :, ::2], 2, 0, 5, 2)
        ),
        "",
        CUT_OFF,
    ),
    Case(
        "col2im-of-channels",
        between(lambda s, x: F.fold(x.flatten(2), (10, 14), 2, stride=2), 12, 3),
        "3",
    ),
    Case(
        "col2im-overlapping",
        between(lambda s, x: F.fold(x.flatten(2), (7, 9), 3), 18, 2),
        "2",
    ),
    Case(
        "col2im-with-gaps",
        between(lambda s, x: F.fold(x.flatten(2), (14, 20), 2, stride=3), 12, 3),
        "3",
    ),
    Case("diagonal", between(lambda s, x: torch.diagonal(x, 0, 2, 3).unsqueeze(-1)), "5"),
    Case("select", between(lambda s, x: x.select(2, 1).unsqueeze(2)), "5"),
    Case("detach", between(lambda s, x: x.detach()), "5"),
    Case("contiguous", between(lambda s, x: x.transpose(2, 3).contiguous().clone()), "5"),
]

SAME_KIND = {
    "reflect": lambda d: lambda s, x: F.pad(x, (1, 2) * d, mode="reflect"),
    "replicate": lambda d: lambda s, x: F.pad(x, (1, 2) * d, mode="replicate"),
    "max-pool": lambda d: lambda s, x: getattr(F, f"max_pool{d}d")(x, 3, 1, 1),
    "avg-pool": lambda d: lambda s, x: getattr(F, f"avg_pool{d}d")(x, 2),
    "adaptive-avg": lambda d: lambda s, x: getattr(F, f"adaptive_avg_pool{d}d")(x, 3),
    "adaptive-max": lambda d: lambda s, x: getattr(F, f"adaptive_max_pool{d}d")(x, 3),
    "nearest": lambda d: lambda s, x: F.interpolate(x, scale_factor=2),
    "nearest-exact": lambda d: lambda s, x: F.interpolate(x, scale_factor=2, mode="nearest-exact"),
    "linear": lambda d: (
        lambda s, x: F.interpolate(
            x, scale_factor=2, mode={1: "linear", 2: "bilinear", 3: "trilinear"}[d]
        )
    ),
}

RESAMPLING = [
    *(spatial(make(d), d, name) for name, make in SAME_KIND.items() for d in (1, 2, 3)),
    Case("bicubic", between(lambda s, x: F.interpolate(x, scale_factor=2, mode="bicubic")), "5"),
    Case(
        "antialias",
        between(lambda s, x: F.interpolate(x, scale_factor=0.7, mode="bilinear", antialias=True)),
        "5",
    ),
    Case(
        "antialias-bicubic",
        between(lambda s, x: F.interpolate(x, scale_factor=0.7, mode="bicubic", antialias=True)),
        "5",
    ),
    Case("area", between(lambda s, x: F.interpolate(x, scale_factor=0.7, mode="area")), "5"),
    Case("ceil-mode", between(lambda s, x: F.max_pool2d(x, 2, ceil_mode=True)), "5"),
    Case("power-pool", between(lambda s, x: F.lp_pool2d(x, 2, 2)), "5"),
]

POINTWISE = [
    Case("relu", between(lambda s, x: x.relu()), "5"),
    Case("relu-in-place", between(lambda s, x: F.relu(x, inplace=True)), "5"),
    Case("add", two(lambda p, q: p + q), "5", BOTH),
    Case("add-in-place", two(lambda p, q: p.add_(q)), "5", BOTH),
    Case("maximum", two(torch.maximum), "5", BOTH),
    Case("where", two(lambda p, q: torch.where(p > 0, p, q)), "5", BOTH),
    Case("scale", between(lambda s, x: x * s.g, g=lambda: nn.Parameter(torch.ones(5, 1, 1))), "5"),
    Case("scale-buffer", between(lambda s, x: x * s.g, g=lambda: torch.rand(1, 5, 1, 1)), "5"),
    Case("scale-all", between(lambda s, x: x * s.g, g=lambda: nn.Parameter(torch.ones(1))), "5"),
    Case(
        "scale-last",
        between(
            lambda s, x: (x.permute(0, 2, 3, 1) * s.g).permute(0, 3, 1, 2),
            g=lambda: nn.Parameter(torch.ones(5)),
        ),
        "5",
    ),
    Case(
        "position-embedding",
        between(lambda s, x: x + s.g, g=lambda: nn.Parameter(torch.ones(1, 5, 5, 7))),
        "5",
    ),
    Case(
        "position-scale",
        between(lambda s, x: x * s.g, g=lambda: nn.Parameter(torch.ones(7))),
        "5",
    ),
    Case("prelu", between(lambda s, x: s.p(x), p=lambda: nn.PReLU(5)), "5"),
    Case("prelu-shared", between(lambda s, x: s.p(x), p=nn.PReLU), "5"),
    Case("add-one-input", two(lambda p, q: p + q, 5, 1), "5", BOTH),
    Case(
        "add-input",
        net(lambda s, x: s.b(s.a(x) + x), a=lambda: conv(2, 2), b=lambda: conv(2, 3)),
        "",
        CUT_OFF,
    ),
    Case(
        "gate",
        net(
            lambda s, x: (lambda h: s.b(h * s.c(h.mean((2, 3), keepdim=True)).sigmoid()))(s.a(x)),
            a=lambda: conv(2, 5),
            b=lambda: conv(5, 3),
            c=lambda: conv(5, 5),
        ),
        "5",
    ),
    Case(
        "position-gate",
        between(lambda s, x: x * s.c(x).sigmoid(), c=lambda: conv(5, 1)),
        "5",
    ),
    Case(
        "outer-product",
        between(lambda s, x: (x.unsqueeze(1) * x.unsqueeze(2)).flatten(1, 2), 3, 9),
        "",
        CUT_OFF,
    ),
]
