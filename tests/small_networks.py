"""Small CNNs written for the tests: one class per construction that real networks use.

Widths are small, distinct and mostly not powers of two, so that axes are never tied by accident
of size. Every class is traceable by torch.fx and deterministic in eval mode.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 5

Norm = Callable[[int], nn.Module]


def conv_bn(c_in: int, c_out: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution (padded to keep the size) and BatchNorm."""
    conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out))


def conv_bn_relu(c_in: int, c_out: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU."""
    return conv_bn(c_in, c_out, kernel, stride).append(nn.ReLU())


def pooled(features: Tensor) -> Tensor:
    """The mean over all positions."""
    return features.flatten(2).mean(2)


class Residual(nn.Module):
    """conv-norm-relu-conv-norm plus a skip, which is projected where the shape changes."""

    def __init__(self, c_in: int, c_out: int, stride: int, norm: Norm, gate: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.norm1 = norm(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.norm2 = norm(c_out)
        self.gate = SqueezeExcite(c_out, 3) if gate else nn.Identity()
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or c_in != c_out:
            self.skip = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), norm(c_out))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.gate(self.norm2(self.conv2(y)))
        return F.relu(y + self.skip(x))


def two_convolutions() -> nn.Sequential:
    """Two convolutions with norms, and a classifier; nothing but modules."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, CLASSES),
    )


class NarrowResNet(nn.Module):
    """A CIFAR-style ResNet with one block a stage; any norm, squeeze-and-excitation on demand."""

    def __init__(
        self,
        widths: tuple[int, int, int] = (6, 10, 14),
        norm: Norm = nn.BatchNorm2d,
        gate: bool = False,
    ) -> None:
        super().__init__()
        a, b, c = widths
        self.stem = nn.Sequential(nn.Conv2d(3, a, 3, padding=1, bias=False), norm(a), nn.ReLU())
        self.stages = nn.Sequential(
            Residual(a, a, 1, norm, gate),
            Residual(a, b, 2, norm, gate),
            Residual(b, c, 2, norm, gate),
        )
        self.fc = nn.Linear(c, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(self.stem(x))
        return self.fc(x.mean((2, 3)))


class PreActivation(nn.Module):
    """norm-relu-conv twice plus the untouched input."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, inner, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.norm1(x)))
        return x + self.conv2(F.relu(self.norm2(y)))


class PreActivationResNet(nn.Module):
    """Norms stand before convolutions, so one residual stream feeds several different norms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 7, 3, padding=1, bias=False)
        self.stage1 = nn.Sequential(PreActivation(7, 6), PreActivation(7, 5))
        self.down = nn.Conv2d(7, 11, 3, 2, 1, bias=False)
        self.stage2 = PreActivation(11, 9)
        self.norm = nn.BatchNorm2d(11)
        self.fc = nn.Linear(11, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage2(self.down(self.stage1(self.stem(x))))
        return self.fc(pooled(F.relu(self.norm(x))))


class SqueezeExcite(nn.Module):
    """Each channel scaled by a sigmoid of all channels' means, through 1x1 convolutions."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.excite = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1))))
        return x * gate.sigmoid()


class ChannelAttention(nn.Module):
    """The same gate spelled with a linear layer, mean and broadcasting."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_bn_relu(3, 7), conv_bn_relu(7, 9))
        self.fc = nn.Linear(9, 9)
        self.head = nn.Sequential(conv_bn_relu(9, 6), nn.Conv2d(6, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        x = x * torch.sigmoid(self.fc(x.mean((2, 3))))[:, :, None, None]
        return self.head(x)


class FlattenNet(nn.Module):
    """No norm; feature maps flattened with their positions, the size written as a literal."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 7, 3, padding=1)
        self.conv2 = nn.Conv2d(7, 10, 3, padding=1)
        self.fc1 = nn.Linear(10 * 4, 12)
        self.fc2 = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.adaptive_avg_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(x.view(-1, 40))))


class UNet(nn.Module):
    """Encoder and decoder with concatenated skips; up by interpolation or transposed conv."""

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.enc1 = conv_bn_relu(3, 5)
        self.enc2 = conv_bn_relu(5, 8)
        self.middle = conv_bn_relu(8, 11)
        self.up2 = self._up(11, 7, transposed)
        self.dec2 = conv_bn_relu(7 + 8, 9)
        self.up1 = self._up(9, 6, transposed)
        self.dec1 = conv_bn_relu(6 + 5, 6)
        self.head = nn.Conv2d(6, 2, 1)

    @staticmethod
    def _up(c_in: int, c_out: int, transposed: bool) -> nn.Module:
        if transposed:
            return nn.ConvTranspose2d(c_in, c_out, 2, stride=2)
        return nn.Sequential(nn.Upsample(scale_factor=2.0, mode="nearest"), conv_bn(c_in, c_out))

    def forward(self, x: Tensor) -> Tensor:
        e1 = self.enc1(x)
        e2 = self.enc2(F.max_pool2d(e1, 2))
        m = self.middle(F.max_pool2d(e2, 2))
        d2 = self.dec2(torch.cat([self.up2(m), e2], 1))
        return self.head(self.dec1(torch.cat([e1, self.up1(d2)], 1)))


class Espcn(nn.Module):
    """Super-resolution by pixel shuffle, with a convolution behind it and the input added."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 9, 5, padding=2)
        self.conv2 = nn.Conv2d(9, 6, 3, padding=1)
        self.conv3 = nn.Conv2d(6, 5 * 4, 3, padding=1)
        self.out = nn.Conv2d(5, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.conv2(torch.tanh(self.conv1(x))))
        y = F.pixel_shuffle(self.conv3(y), 2)
        return self.out(F.relu(y)) + F.interpolate(x, scale_factor=2.0, mode="bilinear")


class Cnn1d(nn.Module):
    """A residual network over sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(2, 6, 5, stride=2, padding=2)
        self.norm1 = nn.BatchNorm1d(6)
        self.conv2 = nn.Conv1d(6, 6, 3, padding=2, dilation=2, bias=False)
        self.norm2 = nn.BatchNorm1d(6)
        self.conv3 = nn.Conv1d(6, 9, 3)
        self.fc = nn.Linear(9, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(x + self.norm2(self.conv2(x)))
        x = F.max_pool1d(F.relu(self.conv3(x)), 2)
        return self.fc(x.mean(-1))


class Cnn3d(nn.Module):
    """Convolutions over volumes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(1, 5, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm3d(5)
        self.conv2 = nn.Conv3d(5, 8, 3, stride=2, padding=1)
        self.norm2 = nn.BatchNorm3d(8)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool3d(F.relu(self.norm1(self.conv1(x))), 2)
        x = F.relu(self.norm2(self.conv2(x)))
        return self.fc(torch.flatten(F.adaptive_avg_pool3d(x, 1), 1))


class GatedNet(nn.Module):
    """Gated linear units: chunk into equal halves, then split into unequal parts."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = conv_bn(3, 14)
        self.conv2 = nn.Conv2d(7, 10, 3, padding=1)
        self.conv3 = nn.Conv2d(11, 8, 3, padding=1)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.conv1(x).chunk(2, dim=1)
        short, long = torch.split(self.conv2(value * torch.sigmoid(gate)), [4, 6], dim=1)
        x = torch.cat([F.relu(long), torch.tanh(short), short.abs().mean(1, keepdim=True)], 1)
        return self.fc(pooled(F.silu(self.conv3(x))))


class ShuffleNet(nn.Module):
    """Grouped 1x1 convolutions with a channel shuffle spelled out between them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn_relu(3, 6)
        self.group1 = nn.Conv2d(6, 12, 1, groups=2, bias=False)
        self.norm1 = nn.BatchNorm2d(12)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False)
        self.group2 = nn.Conv2d(12, 6, 1, groups=3)
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.relu(self.norm1(self.group1(x)))
        n, _, h, w = y.shape
        y = y.view(n, 3, 4, h, w).transpose(1, 2).reshape(n, 12, h, w)
        return self.fc(pooled(F.relu(x + self.group2(self.depthwise(y)))))


class GroupedNet(nn.Module):
    """Grouped convolutions with 2, 3 and 4 groups, and one output channel per group at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1, groups=3)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1, groups=2, bias=False)
        self.norm2 = nn.BatchNorm2d(8)
        self.conv3 = nn.Conv2d(8, 4, 3, padding=1, groups=4)
        self.fc = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm2(self.conv2(F.relu(self.conv1(x)))))
        return self.fc(pooled(F.relu(self.conv3(x))))


class SplitAttentionNet(nn.Module):
    """Two branches made by one grouped convolution, weighted by attention and summed (ResNeSt)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn_relu(3, 8)
        self.branches = nn.Conv2d(8, 14, 3, padding=1, groups=2)
        self.norm = nn.BatchNorm2d(14)
        self.squeeze = nn.Conv2d(7, 4, 1)
        self.excite = nn.Conv2d(4, 14, 1)
        self.last = nn.Conv2d(7, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.branches(self.stem(x))))
        x = x.reshape(x.shape[0], 2, 7, x.shape[2], x.shape[3])
        gate = self.excite(F.relu(self.squeeze(x.sum(1).mean((2, 3), keepdim=True))))
        gate = gate.view(-1, 1, 2, 7).transpose(1, 2).softmax(1).reshape(-1, 2, 7, 1, 1)
        return self.last((x * gate).sum(1)).mean((2, 3))


class SeparableNet(nn.Module):
    """Depthwise then pointwise convolutions, one of them with two outputs per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn_relu(3, 6)
        self.depthwise1 = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False)
        self.pointwise1 = conv_bn_relu(6, 9, kernel=1)
        self.depthwise2 = nn.Conv2d(9, 18, 3, stride=2, padding=1, groups=9)
        self.pointwise2 = conv_bn_relu(18, 7, kernel=1)
        self.fc = nn.Linear(7, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pointwise1(F.relu6(self.depthwise1(self.stem(x))))
        x = self.pointwise2(F.relu6(self.depthwise2(x)))
        return self.fc(pooled(x))


class Detector(nn.Module):
    """Space-to-depth stem, pyramid neck with concatenations, a box and a class output per scale."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.classes = classes
        self.stem = conv_bn_relu(12, 6)
        self.stage1 = conv_bn_relu(6, 8, stride=2)
        self.stage2 = conv_bn_relu(8, 10, stride=2)
        self.lateral = conv_bn_relu(10, 5, kernel=1)
        self.neck1 = conv_bn_relu(5 + 8, 7)
        self.neck2 = conv_bn_relu(9 + 5, 9)
        self.down = conv_bn_relu(7, 9, stride=2)
        self.heads = nn.ModuleList([nn.Conv2d(n, 4 + classes, 1) for n in (7, 9)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        phases = [x[..., i::2, j::2] for i in range(2) for j in range(2)]
        c1 = self.stage1(self.stem(torch.cat(phases, 1)))
        top = self.lateral(self.stage2(c1))
        p1 = self.neck1(torch.cat([F.interpolate(top, scale_factor=2.0), c1], 1))
        p2 = self.neck2(torch.cat([self.down(p1), top], 1))
        box1, class1 = self.heads[0](p1).split([4, self.classes], 1)
        box2, class2 = self.heads[1](p2).split([4, self.classes], 1)
        return box1, class1, box2, class2


class OrderNet(nn.Module):
    """An operator that cares about the order of channels stands in the middle of the network."""

    def __init__(self, ordered: Callable[[], Callable[[Tensor], Tensor]]) -> None:
        super().__init__()
        self.ordered = ordered()
        self.conv1 = conv_bn_relu(3, 6)
        self.conv2 = nn.Conv2d(6, 7, 3, padding=1)
        self.conv3 = nn.Conv2d(7, 9, 3, padding=1)
        self.fc = nn.Linear(9, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.ordered(self.conv2(self.conv1(x)))
        return self.fc(pooled(F.relu(self.conv3(x))))


def running_sum(x: Tensor) -> Tensor:
    """Sums over the channels up to each one, scaled to stay of order one."""
    return torch.cumsum(x, 1) / 3.0


def sorted_channels(x: Tensor) -> Tensor:
    """Channel values in ascending order at every position."""
    return torch.sort(x, 1).values


class SlidingAttention(nn.Module):
    """Channels scaled by a convolution along the channels' means, neighbour by neighbour (ECA)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3)).view(x.shape[0], 1, -1)
        return x * self.conv(means).sigmoid().view(x.shape[0], -1, 1, 1)


class ChannelsLastNet(nn.Module):
    """LayerNorm over channels and linear layers on permuted feature maps, with a layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 7, 2, stride=2)
        self.norm = nn.LayerNorm(7)
        self.expand = nn.Linear(7, 11)
        self.contract = nn.Linear(11, 7)
        self.scale = nn.Parameter(torch.ones(7))
        self.fc = nn.Linear(7, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(x.permute(0, 2, 3, 1))
        y = self.scale * self.contract(F.gelu(self.expand(y)))
        return self.fc(pooled(x + y.permute(0, 3, 1, 2)))


class RootMeanSquareNet(nn.Module):
    """RMSNorm over channels, as a module and as a function of its own weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 7, 2, stride=2)
        self.norm = nn.RMSNorm(7)
        self.expand = nn.Linear(7, 11)
        self.contract = nn.Linear(11, 7)
        self.weight = nn.Parameter(torch.ones(7))
        self.fc = nn.Linear(7, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        x = x + self.contract(F.gelu(self.expand(self.norm(x))))
        return self.fc(F.rms_norm(x, (7,), self.weight, 1e-6).mean((1, 2)))


class SharedNet(nn.Module):
    """One convolution and norm used at two depths: its axes are tied through both uses."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn_relu(3, 8)
        self.shared = conv_bn_relu(8, 8)
        self.between = conv_bn_relu(8, 8, stride=2)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.between(self.shared(self.stem(x)))
        return self.fc(pooled(self.shared(x)))


class PaddedShortcut(nn.Module):
    """A shortcut with channels of zeros added (CIFAR ResNets), resampled to an earlier size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn_relu(3, 6)
        self.branch = nn.Sequential(conv_bn_relu(6, 10, stride=2), conv_bn(10, 10))
        self.fc = nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        stem = self.stem(x)
        x = F.relu(F.pad(stem[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)) + self.branch(stem))
        return self.fc(pooled(F.interpolate(x, stem.shape[2:])))


class TwoInputNet(nn.Module):
    """Two inputs of different kinds whose features are multiplied and concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.image = conv_bn_relu(3, 9)
        self.vector = nn.Linear(4, 9)
        self.fc1 = nn.Linear(18, 7)
        self.fc2 = nn.Linear(7, CLASSES)

    def forward(self, image: Tensor, vector: Tensor) -> Tensor:
        a = pooled(self.image(image))
        b = F.elu(self.vector(vector))
        return self.fc2(F.relu(self.fc1(torch.cat([a * b, b], 1))))


def sequential(norm: Norm, activation: Callable[[int], nn.Module]) -> nn.Sequential:
    """Three convolutions, each with its own norm and activation, and a pooled head."""
    layers: list[nn.Module] = []
    for c_in, c_out in ((3, 6), (6, 9), (9, 7)):
        layers += [nn.Conv2d(c_in, c_out, 3, padding=1), norm(c_out), activation(c_out)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, CLASSES)]
    return nn.Sequential(*layers, *head)
