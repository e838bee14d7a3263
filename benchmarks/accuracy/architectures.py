"""Small networks of eight kinds for 28 x 28 grey images, all below 300,000 parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fixtures.resnet import SmallResNet

Norm = Callable[[int], nn.Module]


def _conv(
    c_in: int, c_out: int, kernel: int = 3, stride: int = 1, groups: int = 1, bias: bool = False
) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=bias)


def _conv_bn_relu(
    c_in: int, c_out: int, kernel: int = 3, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    layer = _conv(c_in, c_out, kernel, stride, groups)
    return [layer, nn.BatchNorm2d(layer.out_channels), nn.ReLU()]


def _head(channels: int, classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]


def _resnet(classes: int, widths: Sequence[int]) -> nn.Module:
    """The fixtures' network with half the resolution throughout."""
    model = SmallResNet(classes, widths)
    model.conv1 = _conv(1, widths[0], 3, 2)
    return model


def _stacked(classes: int, norm: bool, widths: Sequence[int]) -> nn.Module:
    """VGG: pairs of convolutions and pooling, a hidden linear layer."""
    layers: list[nn.Module] = []
    previous = 1
    for stage, width in enumerate(widths):
        for stride in (1 if stage else 2, 1):
            layers.append(_conv(previous, width, 3, stride, bias=not norm))
            layers += [nn.BatchNorm2d(width), nn.ReLU()] if norm else [nn.ReLU()]
            previous = width
        layers.append(nn.MaxPool2d(2))
    layers += [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * previous, 64), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(64, classes))
    if not norm:  # the default initialisation is too small to train from without a norm
        for layer in model:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return model


class Dense(nn.Module):
    """A layer whose output is appended to its input."""

    def __init__(self, c_in: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(c_in)
        self.conv = _conv(c_in, growth)

    def forward(self, x: Tensor) -> Tensor:
        """Input and new features."""
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


def _densenet(classes: int, growth: int = 8, depth: int = 4) -> nn.Module:
    layers: list[nn.Module] = [_conv(1, 16, 3, 2)]
    channels = 16
    for block in range(3):
        for _ in range(depth):
            layers.append(Dense(channels, growth))
            channels += growth
        layers += [nn.BatchNorm2d(channels), nn.ReLU()]
        if block < 2:
            layers += [_conv(channels, channels // 2, 1), nn.AvgPool2d(2)]
            channels //= 2
    return nn.Sequential(*layers, *_head(channels, classes))


class Residual(nn.Module):
    """A body plus its input, which is projected where the shape changes."""

    def __init__(self, body: Sequence[nn.Module], skip: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)
        self.skip, self.activation = skip, activation

    def forward(self, x: Tensor) -> Tensor:
        """Activation of the sum."""
        result: Tensor = self.activation(self.body(x) + self.skip(x))
        return result


def _inverted(c_in: int, c_out: int, stride: int, expansion: int = 4) -> nn.Module:
    hidden = c_in * expansion
    body = [
        *_conv_bn_relu(c_in, hidden, 1),
        *_conv_bn_relu(hidden, hidden, 3, stride, groups=hidden),
        _conv(hidden, c_out, 1),
        nn.BatchNorm2d(c_out),
    ]
    if stride == 1 and c_in == c_out:
        return Residual(body, nn.Identity(), nn.Identity())
    return nn.Sequential(*body)


def _mobilenet(classes: int) -> nn.Module:
    plan = [(16, 16, 1), (16, 24, 2), (24, 24, 1), (24, 32, 2), (32, 32, 1), (32, 48, 1)]
    blocks = [_inverted(*shape) for shape in plan]
    last = _conv_bn_relu(48, 96, 1)
    return nn.Sequential(*_conv_bn_relu(1, 16, 3, 2), *blocks, *last, *_head(96, classes))


def _projection(c_in: int, c_out: int, stride: int, norm: Norm) -> nn.Module:
    if stride == 1 and c_in == c_out:
        return nn.Identity()
    return nn.Sequential(_conv(c_in, c_out, 1, stride), norm(c_out))


def _aggregated(c_in: int, c_out: int, stride: int, groups: int = 4) -> nn.Module:
    """ResNeXt: a bottleneck whose 3 x 3 convolution is grouped."""
    inner = c_out // 2
    body = [
        *_conv_bn_relu(c_in, inner, 1),
        *_conv_bn_relu(inner, inner, 3, stride, groups=groups),
        _conv(inner, c_out, 1),
        nn.BatchNorm2d(c_out),
    ]
    return Residual(body, _projection(c_in, c_out, stride, nn.BatchNorm2d), nn.ReLU())


def _resnext(classes: int) -> nn.Module:
    plan = [(32, 64, 1), (64, 64, 1), (64, 96, 2), (96, 96, 1), (96, 128, 2), (128, 128, 1)]
    blocks = [_aggregated(*shape) for shape in plan]
    return nn.Sequential(*_conv_bn_relu(1, 32, 3, 2), *blocks, *_head(128, classes))


def _group_norm(classes: int, channels_per_group: int = 4) -> nn.Module:
    def norm(channels: int) -> nn.Module:
        return nn.GroupNorm(channels // channels_per_group, channels)

    def block(c_in: int, c_out: int, stride: int) -> nn.Module:
        body = [
            *(_conv(c_in, c_out, 3, stride), norm(c_out), nn.ReLU()),
            *(_conv(c_out, c_out), norm(c_out)),
        ]
        return Residual(body, _projection(c_in, c_out, stride, norm), nn.ReLU())

    plan = [(16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 48, 2), (48, 48, 1)]
    blocks = [block(*shape) for shape in plan]
    return nn.Sequential(_conv(1, 16), norm(16), nn.ReLU(), *blocks, *_head(48, classes))


ARCHITECTURES: dict[str, Callable[[int], nn.Module]] = {
    "resnet-narrow": partial(_resnet, widths=(6, 12, 24)),
    "resnet-wide": partial(_resnet, widths=(16, 32, 64)),
    "vgg": partial(_stacked, norm=True, widths=(12, 24, 48)),
    "densenet": _densenet,
    "mobilenet": _mobilenet,
    "resnext": _resnext,
    "no-norm": partial(_stacked, norm=False, widths=(12, 24, 48)),
    "group-norm": _group_norm,
}
PEAK_RATE = {"no-norm": 0.03}  # others: 0.2
