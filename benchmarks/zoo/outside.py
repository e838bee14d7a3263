"""Networks from outside the model zoos, written out small: one for each kind people merge."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(c_in: int, c_out: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, BatchNorm, SiLU."""
    layer = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(c_out), nn.SiLU(inplace=True))


class UNet(nn.Module):
    """Ronneberger et al. 2015 at a quarter of the widths: concatenated skips, transposed convs."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64, 128), classes: int = 3) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.first = nn.Sequential(conv(3, widths[0]), conv(widths[0], widths[0]))
        self.down = nn.ModuleList(nn.Sequential(conv(a, b), conv(b, b)) for a, b in pairs)
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in reversed(pairs))
        self.merge = nn.ModuleList(
            nn.Sequential(conv(2 * a, a), conv(a, a)) for a, _ in reversed(pairs)
        )
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits a pixel."""
        x = self.first(x)
        skips = []
        for down in self.down:
            skips.append(x)
            x = down(F.max_pool2d(x, 2))
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([skips.pop(), up(x)], 1))
        logits: Tensor = self.head(x)
        return logits


class CifarBlock(nn.Module):
    """Two convolutions and a shortcut that pads with zero channels (He et al. 2016, option A)."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.stride, self.extra = stride, (c_out - c_in) // 2

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.extra:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.extra, self.extra))
        return F.relu(x + y)


class CifarResNet20(nn.Module):
    """The CIFAR ResNet with 20 layers."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16))
        shapes = [(16, 16, 1)] * 3 + [(16, 32, 2)] + [(32, 32, 1)] * 2 + [(32, 64, 2)]
        self.blocks = nn.Sequential(*(CifarBlock(*s) for s in [*shapes, *[(64, 64, 1)] * 2]))
        self.fc = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.blocks(F.relu(self.stem(x)))
        logits: Tensor = self.fc(F.avg_pool2d(x, x.shape[2:]).flatten(1))
        return logits


class Espcn(nn.Module):
    """Shi et al. 2016: super-resolution by pixel shuffle, no normalisation."""

    def __init__(self, scale: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 64, 5, padding=2)
        self.conv2 = nn.Conv2d(64, 32, 3, padding=1)
        self.conv3 = nn.Conv2d(32, scale**2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(scale)

    def forward(self, x: Tensor) -> Tensor:
        """The larger image."""
        x = torch.tanh(self.conv2(torch.tanh(self.conv1(x))))
        image: Tensor = self.shuffle(self.conv3(x))
        return image


class C2f(nn.Module):
    """Split, a chain of residual bottlenecks, everything concatenated (YOLOv8)."""

    def __init__(self, c_in: int, c_out: int, depth: int = 1) -> None:
        super().__init__()
        half = c_out // 2
        self.enter = conv(c_in, c_out, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(conv(half, half), conv(half, half)) for _ in range(depth)
        )
        self.leave = conv((2 + depth) * half, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """All intermediate values, mixed."""
        parts = list(self.enter(x).chunk(2, 1))
        for block in self.blocks:
            parts.append(parts[-1] + block(parts[-1]))
        mixed: Tensor = self.leave(torch.cat(parts, 1))
        return mixed


class Detector(nn.Module):
    """A YOLO-style detector: pyramid pooling, concat neck, boxes and classes at three scales."""

    def __init__(self, width: int = 16, classes: int = 7) -> None:
        super().__init__()
        a, b, c = 2 * width, 4 * width, 8 * width
        self.stem = nn.Sequential(conv(3, width, 3, 2), conv(width, a, 3, 2))
        self.p3 = nn.Sequential(conv(a, a, 3, 2), C2f(a, a))
        self.p4 = nn.Sequential(conv(a, b, 3, 2), C2f(b, b))
        self.p5 = nn.Sequential(conv(b, c, 3, 2), C2f(c, c))
        self.narrow, self.pool, self.widen = conv(c, b, 1), nn.MaxPool2d(5, 1, 2), conv(4 * b, c, 1)
        self.up4, self.up3 = C2f(c + b, b), C2f(b + a, a)
        self.down4, self.out4 = conv(a, a, 3, 2), C2f(a + b, b)
        self.down5, self.out5 = conv(b, b, 3, 2), C2f(b + c, c)
        self.boxes = nn.ModuleList(nn.Conv2d(n, 4, 1) for n in (a, b, c))
        self.classes = nn.ModuleList(nn.Conv2d(n, classes, 1) for n in (a, b, c))

    def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
        """Box regressions and class logits, from the finest scale to the coarsest."""
        p3 = self.p3(self.stem(x))
        p4 = self.p4(p3)
        rows = [self.narrow(self.p5(p4))]
        for _ in range(3):
            rows.append(self.pool(rows[-1]))
        p5 = self.widen(torch.cat(rows, 1))
        p4 = self.up4(torch.cat([F.interpolate(p5, scale_factor=2.0), p4], 1))
        p3 = self.up3(torch.cat([F.interpolate(p4, scale_factor=2.0), p3], 1))
        p4 = self.out4(torch.cat([self.down4(p3), p4], 1))
        p5 = self.out5(torch.cat([self.down5(p4), p5], 1))
        scales = (p3, p4, p5)
        return {
            "boxes": [layer(p) for layer, p in zip(self.boxes, scales, strict=True)],
            "classes": [layer(p) for layer, p in zip(self.classes, scales, strict=True)],
        }


class Crnn(nn.Module):
    """Shi et al. 2015: lines of text, read by convolutions, then both ways by two LSTM layers."""

    def __init__(self, classes: int = 37, states: int = 256) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_read(1, 64, pool=2),
            *_read(64, 128, pool=2),
            *_read(128, 256, norm=True),
            *_read(256, 256, pool=(2, 1)),
            *_read(256, 512, norm=True),
            *_read(512, 512, pool=(2, 1)),
            nn.Conv2d(512, 512, 2),
            nn.BatchNorm2d(512),
            nn.ReLU(),
        )
        self.lstm = nn.LSTM(512, states, num_layers=2, bidirectional=True)
        self.head = nn.Linear(2 * states, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 32, W) to (steps, N, classes), for a CTC decoder."""
        columns = self.features(x).squeeze(2).permute(2, 0, 1)
        found: Tensor = self.head(self.lstm(columns)[0])
        return found


def _read(
    c_in: int, c_out: int, norm: bool = False, pool: int | tuple[int, int] = 1
) -> list[nn.Module]:
    layers = [nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU()]
    return [*(layers if norm else layers[::2]), *([nn.MaxPool2d(pool)] if pool != 1 else [])]


def signal_cnn() -> nn.Module:
    """A 1-d CNN for signals: dilated convolutions, pooling, a flattened feature map."""
    return nn.Sequential(
        nn.Conv1d(2, 16, 7, 2, 3),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Conv1d(16, 24, 5, padding=4, dilation=2),
        nn.BatchNorm1d(24),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(24, 32, 3, padding=1),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(4),
        nn.Flatten(),
        nn.Linear(128, 48),
        nn.ReLU(),
        nn.Linear(48, 6),
    )


def volume_cnn() -> nn.Module:
    """A 3-d CNN for volumes or clips."""
    return nn.Sequential(
        nn.Conv3d(1, 12, 3, 2, 1, bias=False),
        nn.BatchNorm3d(12),
        nn.ReLU(),
        nn.Conv3d(12, 24, 3, padding=1, bias=False),
        nn.BatchNorm3d(24),
        nn.ReLU(),
        nn.MaxPool3d(2),
        nn.Conv3d(24, 32, 3, padding=1, bias=False),
        nn.BatchNorm3d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(32, 5),
    )
