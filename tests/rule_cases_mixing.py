"""Tiny networks for operators that mix channels, and for those without a rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import DeformConv2d

from tests.rule_cases import (
    BOTH,
    CONVS,
    CUT_OFF,
    MOVEMENT,
    POINTWISE,
    RESAMPLING,
    SHAPES,
    Case,
    Forward,
    between,
    conv,
    head,
    net,
)


def _convolutions() -> Iterator[Case]:
    transposed: dict[int, Any] = {
        1: nn.ConvTranspose1d,
        2: nn.ConvTranspose2d,
        3: nn.ConvTranspose3d,
    }
    for dims, kind in CONVS.items():
        yield Case(
            f"conv-{dims}d",
            net(
                lambda s, x: s.b(s.a(x)),
                a=lambda kind=kind: kind(2, 5, 3, padding=1),
                b=lambda kind=kind: kind(5, 3, 2, stride=2),
            ),
            "5",
            shape=SHAPES[dims],
        )
        yield Case(
            f"transposed-{dims}d",
            net(
                lambda s, x: s.b(s.t(s.a(x))),
                a=lambda kind=kind: kind(2, 5, 1),
                t=lambda dims=dims: transposed[dims](5, 7, 2, stride=2),
                b=lambda kind=kind: kind(7, 3, 1),
            ),
            "5 7",
            shape=SHAPES[dims],
        )


def _deformable() -> Iterator[Case]:
    """Both versions: places that are looked up, and weights of these."""
    layers: dict[str, Callable[[], Any]] = {
        "a": lambda: nn.Conv2d(2, 5, 1),
        "o": lambda: nn.Conv2d(5, 18, 1),
        "d": lambda: DeformConv2d(5, 7, 3, padding=1),
        "b": lambda: nn.Conv2d(7, 3, 1),
    }
    held = "a.weight.1 o.weight.0 o.bias.0"
    yield Case(
        "deformable",
        net(lambda s, x: s.b(s.d(s.a(x), s.o(s.a(x)).tanh())), **layers),
        "5 7",
        held,
    )
    yield Case(
        "deformable-weighed",
        net(
            lambda s, x: s.b(s.d(s.a(x), s.o(s.a(x)).tanh(), s.w(s.a(x)).sigmoid())),
            w=lambda: nn.Conv2d(5, 9, 1),
            **layers,
        ),
        "5 7",
        f"{held} w.weight.0 w.bias.0",
    )


def chain(*layers: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """``a``, the layers ``g``, ``h``, …, and ``b``, one after the other."""
    names = ["a", *"ghijk"[: len(layers) - 2], "b"]
    return net(
        lambda s, x: _through([getattr(s, name) for name in names], x),
        **dict(zip(names, layers, strict=True)),
    )


def _through(layers: list[nn.Module], x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


def grouped(c_in: int, c_out: int, groups: int, **options: Any) -> Callable[[], nn.Module]:
    """A grouped convolution, to be built."""
    return lambda: conv(c_in, c_out, 3, padding=1, groups=groups, **options)


def plain(c_in: int, c_out: int) -> Callable[[], nn.Module]:
    """A 1x1 convolution, to be built."""
    return lambda: conv(c_in, c_out)


def transposed(c_in: int, c_out: int, groups: int) -> Callable[[], nn.Module]:
    """A grouped transposed convolution, to be built."""
    return lambda: nn.ConvTranspose2d(c_in, c_out, 3, groups=groups)


def _selective(s: Any, x: Tensor) -> Tensor:
    """Two branches, weighted channel by channel with a softmax over the branches (SKNet)."""
    both = torch.stack([s.a(x), s.c(x)], 1)
    weights = s.q(both.sum(1)).unflatten(1, (2, 5)).softmax(1)
    return s.b((both * weights).sum(1))


Look = Callable[[Any], Tensor]
SHADE = torch.arange(5 * 7 * 7).remainder(3.0).view(5, 7, 7)  # written in the code: no buffer


def _windows(bias: Look, mask: Look) -> Forward:
    """Attention in five windows of seven tokens, with a bias a head and pair of tokens (Swin)."""

    def function(s: Any, x: Tensor) -> Tensor:
        tokens = s.a(x.flatten(2).transpose(1, 2)).reshape(-1, 7, 9)
        q, k, v = (layer(tokens).unflatten(2, (3, -1)).transpose(1, 2) for layer in (s.q, s.k, s.v))
        scores = q @ k.transpose(2, 3) + bias(s)
        scores = scores.view(-1, 5, 3, 7, 7) + mask(s).view(1, 5, 1, 7, 7)
        mixed = scores.view(-1, 3, 7, 7).softmax(-1) @ v
        return s.b(mixed.transpose(1, 2).flatten(2))

    return function


def _looked_up(s: Any) -> Tensor:
    return s.table[s.index.view(-1)].view(7, 7, 3).permute(2, 0, 1)


def _masked(s: Any) -> Tensor:
    return s.mask


def _windowed(name: str, bias: Look, groups: str, needless: str = "", mask: Look = _masked) -> Case:
    return Case(name, net(
        _windows(bias, mask),
        a=lambda: nn.Linear(2, 9), b=lambda: nn.Linear(21, 3),
        q=lambda: nn.Linear(9, 15), k=lambda: nn.Linear(9, 15), v=lambda: nn.Linear(9, 21),
        mask=lambda: torch.randint(2, (5, 7, 7)),
        table=lambda: nn.Parameter(torch.randn(13, 3)),
        index=lambda: torch.arange(7)[:, None] - torch.arange(7) + 6,
    ), groups, inert="k.bias.0", needless=needless)  # fmt: skip


def _recurrent(s: Any, x: Tensor) -> Tensor:
    steps, _ = s.g(s.a(x).mean(3).permute(2, 0, 1))
    found: Tensor = s.b(steps)
    return found


def _attention(s: Any, x: Tensor) -> Tensor:
    """Three heads, of 5 channels for queries and keys and of 7 for values."""
    tokens = s.a(x.flatten(2).transpose(1, 2))
    q, k, v = (layer(tokens).unflatten(2, (3, -1)).transpose(1, 2) for layer in (s.q, s.k, s.v))
    mixed = (q @ k.transpose(2, 3)).softmax(-1) @ v
    return s.b(mixed.transpose(1, 2).flatten(2))


def _stacked(s: Any, x: Tensor) -> Tensor:
    """Two means with the same channels, summed up with weights by a kernel of one position."""
    means = torch.stack([s.a(x).mean((2, 3)), s.c(x).mean((2, 3))], 1)
    return s.b(s.q(means).flatten(1))


def _skipped(s: Any, x: Tensor) -> Tensor:
    """Every other channel, by a stride along them."""
    return s.b(s.q(s.a(x).mean((2, 3)).unsqueeze(1)).flatten(1))


CONTRACTION = [
    *_convolutions(),
    *_deformable(),
    Case("grouped", chain(plain(2, 15), grouped(15, 21, 3), plain(21, 3)), "3x5 3x7"),
    Case("grouped-transposed", chain(plain(2, 15), transposed(15, 21, 3), plain(21, 3)), "3x5 3x7"),
    Case("depthwise", chain(plain(2, 5), grouped(5, 5, 5), plain(5, 3)), "5"),
    Case("depthwise-transposed", chain(plain(2, 5), transposed(5, 5, 5), plain(5, 3)), "5"),
    Case("depthwise-threefold", chain(plain(2, 5), grouped(5, 15, 5), plain(15, 3)), "5x1 5x3"),
    Case(
        "depthwise-input",
        chain(grouped(2, 2, 2), plain(2, 3)),
        "",
        "a.weight.0 a.bias.0 b.weight.1",
    ),
    Case(
        "grouped-input",
        chain(grouped(2, 10, 2), plain(10, 3)),
        "",
        "a.weight.0 a.bias.0 b.weight.1",
        needless="a.weight.0 a.bias.0 b.weight.1",
    ),
    Case(
        "two-groupings",
        chain(plain(2, 15), grouped(15, 15, 3), grouped(15, 15, 5), plain(15, 3)),
        "5 5 5 3 2 1 3 1 2 3 3 3 3 3 3",
    ),
    Case(
        "depthwise-twice",
        chain(plain(2, 5), grouped(5, 10, 5), grouped(10, 30, 10), plain(30, 3)),
        "5x1 5x1 5x1 5x3 5x3",
    ),
    Case("kernel-of-one-position", net(
        _stacked, a=lambda: conv(2, 5), c=lambda: conv(2, 5), q=lambda: nn.Conv1d(2, 1, 1),
        b=lambda: nn.Linear(5, 3),
    ), "5", "a.weight.1 c.weight.1 q.weight.1"),
    Case("kernel-of-one-position-strided", net(
        _skipped, a=lambda: conv(2, 5), q=lambda: nn.Conv1d(1, 1, 1, stride=2),
        b=lambda: nn.Linear(3, 3),
    ), "", "a.weight.0 a.weight.1 a.bias.0 b.weight.1"),
    Case("radix", net(
        lambda s, x: s.b(s.g(s.a(x)).unflatten(1, (3, 7)).relu().sum(1)),
        a=plain(2, 15), g=grouped(15, 21, 3), b=plain(7, 3),
    ), "5 5 5 7x1 7x1 7x1 7x1"),
    Case("shared-layer", net(
        lambda s, x: s.b(s.c(s.c(s.a(x)).relu())),
        a=plain(2, 5), b=plain(5, 3), c=plain(5, 5),
    ), "5"),
    Case("linear", chain(lambda: conv(2, 3), lambda: nn.Linear(7, 5), lambda: nn.Linear(5, 3)),
         "5", "a.weight.1 g.weight.1"),
    Case("linear-after-flatten", head(lambda s, x: x.relu().flatten(1), 175), "5"),
    *(Case(f"recurrent-{kind.__name__.lower()}", net(
        _recurrent, a=lambda: conv(2, 5), b=lambda: nn.Linear(14, 3),
        g=partial(kind, 5, 7, num_layers=2, bidirectional=True),
    ), "5 7 7 7 7") for kind in (nn.RNN, nn.GRU, nn.LSTM)),
    Case("recurrent-last-state", net(
        lambda s, x: s.b(s.g(s.a(x).mean(3).permute(2, 0, 1))[1][-1]),
        a=lambda: conv(2, 5), b=lambda: nn.Linear(7, 3), g=lambda: nn.GRU(5, 7, num_layers=2),
    ), "5 7 7"),
    Case("recurrent-first-state", net(
        lambda s, x: s.b(s.g(s.a(x).mean(3).permute(2, 0, 1), s.c(x).mean((2, 3))[None])[0]),
        a=lambda: conv(2, 5), c=lambda: conv(2, 7), b=lambda: nn.Linear(7, 3),
        g=lambda: nn.GRU(5, 7),
    ), "5 7", BOTH),
    Case("linear-without-bias", net(
        lambda s, x: s.b(s.a(x.mean((2, 3)))),
        a=lambda: nn.Linear(2, 5, bias=False), b=lambda: nn.Linear(5, 3, bias=False),
    ), "5"),
    Case("matmul-parameter", net(
        lambda s, x: s.b((s.a(x).permute(0, 2, 3, 1) @ s.w).permute(0, 3, 1, 2)),
        a=plain(2, 5), b=plain(7, 3), w=lambda: nn.Parameter(torch.randn(5, 7)),
    ), "5 7"),
    Case("einsum", net(
        lambda s, x: s.b(torch.einsum("nchw,oc->nohw", s.a(x), s.w)),
        a=plain(2, 5), b=plain(7, 3), w=lambda: nn.Parameter(torch.randn(7, 5)),
    ), "7 5"),
    Case("bmm", net(
        lambda s, x: s.b(torch.bmm(s.a(x).flatten(2).mT, s.c(x).flatten(2)).unsqueeze(1)),
        a=plain(2, 5), b=plain(1, 3), c=plain(2, 5),
    ), "5", BOTH),
    Case("bmm-with-itself", head(
        lambda s, x: torch.bmm(x.flatten(2), x.flatten(2).mT).flatten(1), 25
    ), "", CUT_OFF),
    Case("baddbmm", net(
        lambda s, x: s.b(torch.baddbmm(s.g, s.a(x).flatten(2).mT, s.c(x).flatten(2)).unsqueeze(1)),
        a=plain(2, 5), b=plain(1, 3), c=plain(2, 5), g=lambda: torch.rand(1, 1, 1),
    ), "5", BOTH),
    Case("attention", net(
        _attention,
        a=lambda: nn.Linear(2, 9), b=lambda: nn.Linear(21, 3),
        q=lambda: nn.Linear(9, 15), k=lambda: nn.Linear(9, 15), v=lambda: nn.Linear(9, 21),
    ), "9 3x5 3x7", inert="k.bias.0"),
    Case("selective-kernel", net(
        _selective, a=plain(2, 5), c=plain(2, 5), q=plain(5, 10), b=plain(5, 3),
    ), "5", BOTH),
    _windowed("attention-windows", _looked_up, "3x1 9 3x5 3x7"),
    _windowed("attention-windows-constant", _looked_up, "3x1 9 3x5 3x7", mask=lambda _: SHADE),
    Case("weight-norm", net(
        lambda s, x: s.b(F.conv2d(s.a(x), torch._weight_norm(s.w, s.g, 0))),
        a=plain(2, 5), b=plain(7, 3),
        w=lambda: nn.Parameter(torch.randn(7, 5, 3, 3)),
        g=lambda: nn.Parameter(torch.rand(7, 1, 1, 1) + 0.5),
    ), "7 5"),
    Case("standardised-grouped", net(
        lambda s, x: s.b(F.conv2d(s.a(x), s.w - s.w.mean((1, 2, 3), keepdim=True), groups=3)),
        a=plain(2, 6), b=plain(15, 3), w=lambda: nn.Parameter(torch.randn(15, 2, 3, 3)),
    ), "3x5 3x2"),
    Case("normalised-grouped", net(
        lambda s, x: s.b(F.conv2d(s.a(x), F.batch_norm(
            s.w.reshape(1, 15, -1), None, None, s.g, training=True).view(15, 2, 3, 3), groups=3)),
        a=plain(2, 6), b=plain(15, 3), w=lambda: nn.Parameter(torch.randn(15, 2, 3, 3)),
        g=lambda: nn.Parameter(torch.rand(15) + 0.5),
    ), "3x5 3x2"),
    Case("standardised-weight", net(
        lambda s, x: F.conv2d(s.a(x), s.w - s.w.mean((1, 2, 3), keepdim=True)),
        a=plain(2, 5), w=lambda: nn.Parameter(torch.randn(3, 5, 3, 3)),
    ), "5"),
]  # fmt: skip


def last(layer: str) -> Forward:
    """A layer of the network, applied with the channels last."""
    return lambda s, x: getattr(s, layer)(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def normalised(norm: Callable[[], nn.Module], channels: int = 5) -> Callable[[], nn.Module]:
    """``a``, a normalisation ``n``, ``b``."""
    return between(lambda s, x: s.n(x), channels, n=norm)


NORMALISATION = [
    Case("batch-norm", normalised(lambda: nn.BatchNorm2d(5)), "5"),
    Case("batch-norm-plain", normalised(lambda: nn.BatchNorm2d(5, affine=False)), "5"),
    Case(
        "batch-norm-input",
        chain(lambda: nn.BatchNorm2d(2), plain(2, 3)),
        "",
        "a.weight.0 a.bias.0 a.running_mean.0 a.running_var.0 b.weight.1",
    ),
    Case("group-norm", normalised(lambda: nn.GroupNorm(3, 15), 15), "3x5"),
    Case("group-norm-plain", normalised(lambda: nn.GroupNorm(3, 15, affine=False), 15), "3x5"),
    Case("group-norm-one", normalised(lambda: nn.GroupNorm(1, 5)), "5"),
    Case("group-norm-each", normalised(lambda: nn.GroupNorm(5, 5)), "5", inert="a.bias.0"),
    Case(
        "group-norm-and-grouped",
        chain(plain(2, 15), lambda: nn.GroupNorm(3, 15), grouped(15, 21, 3), plain(21, 3)),
        "3x5 3x7",
    ),
    Case(
        "group-norm-residual",
        between(lambda s, x: x + s.n(s.c(x)), 15, n=lambda: nn.GroupNorm(3, 15), c=plain(15, 15)),
        "3x5",
    ),
    Case("layer-norm", between(last("n"), n=lambda: nn.LayerNorm(5)), "5"),
    Case("rms-norm", between(last("n"), n=lambda: nn.RMSNorm(5)), "5"),
    Case(
        "layer-norm-everything",
        normalised(lambda: nn.LayerNorm((5, 5, 7))),
        "5",
        "a.weight.1",
    ),
    Case(
        "layer-norm-positions",
        normalised(lambda: nn.LayerNorm((5, 7))),
        "5",
        "a.weight.1",
        inert="a.bias.0",
    ),
    Case("instance-norm", normalised(lambda: nn.InstanceNorm2d(5)), "5", inert="a.bias.0"),
    Case(
        "instance-norm-affine",
        normalised(lambda: nn.InstanceNorm2d(5, affine=True)),
        "5",
        inert="a.bias.0",
    ),
    Case(
        "instance-norm-statistics",
        normalised(lambda: nn.InstanceNorm2d(5, affine=True, track_running_stats=True)),
        "5",
    ),
    Case("softmax", between(lambda s, x: x.softmax(1)), "5"),
    Case("softmax-positions", between(lambda s, x: x.softmax(3)), "5", inert="a.bias.0"),
    Case("log-softmax", between(lambda s, x: F.log_softmax(x, 1)), "5"),
    Case("unit-norm", between(lambda s, x: F.normalize(x, dim=1)), "5"),
    Case("local-response", normalised(lambda: nn.LocalResponseNorm(3)), "", CUT_OFF),
]

REDUCTION = [
    Case("mean", head(lambda s, x: x.mean((2, 3))), "5"),
    Case("sum", head(lambda s, x: x.sum((2, 3))), "5"),
    Case("amax", head(lambda s, x: x.amax((2, 3)) + x.amin((2, 3))), "5"),
    Case("max-positions", head(lambda s, x: x.max(3)[0].min(2)[0]), "5"),
    Case("variance", head(lambda s, x: x.var((2, 3)) + x.std((2, 3))), "5", inert="a.bias.0"),
    Case("moments", head(lambda s, x: torch.var_mean(x, (2, 3))[0]), "5", inert="a.bias.0"),
    Case("deviation", head(lambda s, x: torch.std_mean(x, (2, 3))[1]), "5"),
    Case("product", head(lambda s, x: x.prod(3).nansum(2)), "5"),
    Case("log-sum-exp", head(lambda s, x: x.logsumexp((2, 3))), "5"),
    Case("norm", head(lambda s, x: torch.linalg.vector_norm(x, dim=(2, 3))), "5"),
    Case("any", head(lambda s, x: ((x > 0).any(3) & (x < 9).all(3)).to(x).mean(2)), "5"),
    Case("mean-channels", between(lambda s, x: x * x.mean(1, keepdim=True)), "5"),
    Case("norm-channels", between(lambda s, x: x / x.norm(dim=1, keepdim=True)), "5"),
    Case("mean-everything", between(lambda s, x: x * x.mean()), "5"),
    Case("variance-channels", between(lambda s, x: x.var(1, keepdim=True), 5, 1), "5"),
    Case("max-channels", between(lambda s, x: x.max(1, keepdim=True)[0], 5, 1), "5"),
    Case(
        "max-channels-and-which",
        between(lambda s, x: valued(x.max(1, keepdim=True)), 5, 1),
        "",
        "a.weight.0 a.weight.1 a.bias.0",
    ),
    Case("min-positions-and-which", head(lambda s, x: valued(x.flatten(2).min(2))), "5"),
]


def valued(found: Any) -> Any:
    """Values and their indices, as one."""
    return found[0] + found[1]


def unknown(operation: Forward, after: int = 5) -> Callable[[], nn.Module]:
    """An operation between ``a`` and ``c``; what comes after ``c`` doesn't touch it."""
    return net(
        lambda s, x: s.b(s.c(operation(s, s.a(x))).relu()),
        a=lambda: conv(2, 5),
        b=lambda: conv(7, 3),
        c=lambda: conv(after, 7),
    )


FROZEN = "a.weight.0 a.weight.1 a.bias.0 c.weight.1"

# Operators without a rule, the node each comes from, and the reason that must name it.
UNKNOWN: list[tuple[Case, str, str]] = [
    (Case("cumsum", unknown(lambda s, x: x.cumsum(1)), "7", FROZEN), "cumsum", "cumsum"),
    (
        Case(
            "cumsum-positions",
            unknown(lambda s, x: x.cumsum(2)),
            "7",
            FROZEN,
            needless="a.weight.0 a.bias.0 + c.weight.1",
        ),
        "cumsum",
        "cumsum",
    ),
    (
        Case(
            "sort", unknown(lambda s, x: x.sort(1)[0]), "7", FROZEN, needless="a.weight.0 a.bias.0"
        ),
        "sort",
        "sort",
    ),
    (
        Case(
            "top-k",
            unknown(lambda s, x: x.topk(3, 1)[0], 3),
            "7",
            FROZEN,
            needless="a.weight.0 a.bias.0",
        ),
        "topk",
        "topk",
    ),
    (
        Case(
            "gather",
            unknown(lambda s, x: x.gather(1, x.argsort(1))),
            "7",
            FROZEN,
            needless="a.weight.0 a.bias.0",
        ),
        "argsort",
        "sort",
    ),
]

CASES = [*MOVEMENT, *RESAMPLING, *POINTWISE, *CONTRACTION, *NORMALISATION, *REDUCTION]
