"""Convolutions that compute something from their own weights, or their sizes, on every call."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.small_networks import CLASSES, pooled


class StandardisedConv(nn.Conv2d):
    """A convolution whose filters are brought to mean 0 and variance 1 on every call."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.square().sum((1, 2, 3), keepdim=True).sqrt() + 1e-5)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class StandardisedNet(nn.Module):
    """Weight standardisation with GroupNorm, as in BiT."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = StandardisedConv(3, 6, 3, padding=1)
        self.norm1 = nn.GroupNorm(3, 6)
        self.conv2 = StandardisedConv(6, 9, 3, padding=1)
        self.norm2 = nn.GroupNorm(3, 9)
        self.fc = nn.Linear(9, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        return self.fc(pooled(F.relu(self.norm2(self.conv2(x)))))


class SameConv(nn.Conv2d):
    """A convolution that pads as TensorFlow does: by its own kernel's size and the image's."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = self._missing(x, 0), self._missing(x, 1)
        x = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, 1, self.groups)

    def _missing(self, x: Tensor, dim: int) -> int:
        outputs = (x.shape[2 + dim] + self.stride[dim] - 1) // self.stride[dim]
        return (outputs - 1) * self.stride[dim] + self.weight.shape[2 + dim] - x.shape[2 + dim]


class SameNet(nn.Module):
    """Two branches whose sizes agree only if every kernel is what it was, as in NASNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6))
        self.depthwise = SameConv(6, 6, 7, stride=2, groups=6)
        self.pointwise = nn.Sequential(nn.Conv2d(6, 9, 1), nn.BatchNorm2d(9))
        self.other = nn.Sequential(SameConv(6, 9, 5, stride=2), nn.BatchNorm2d(9))
        self.fc = nn.Linear(9, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.fc(pooled(F.relu(self.pointwise(self.depthwise(x)) + self.other(x))))


class FrozenNorm(nn.Module):
    """A batch norm whose numbers are all buffers, written out (detectors' backbones)."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("weight", "running_var"):
            self.register_buffer(name, torch.rand(channels) + 0.5)
        for name in ("bias", "running_mean"):
            self.register_buffer(name, torch.randn(channels) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.reshape(1, -1, 1, 1), self.bias.reshape(1, -1, 1, 1)
        scale = weight * (self.running_var.reshape(1, -1, 1, 1) + 1e-5).rsqrt()
        return x * scale + (bias - self.running_mean.reshape(1, -1, 1, 1) * scale)


class SmoothNet(nn.Module):
    """Pooling with one kernel, repeated for all channels, as antialiased networks do."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.register_buffer("kernel", torch.rand(1, 1, 3, 3))
        self.last = nn.Sequential(nn.Conv2d(8, 9, 3, padding=1), nn.BatchNorm2d(9), nn.ReLU())
        self.fc = nn.Linear(9, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        channels = x.shape[1]
        kernels = self.kernel.repeat(channels, 1, 1, 1)
        x = F.conv2d(x, kernels, stride=2, padding=1, groups=channels)
        return self.fc(pooled(self.last(x)))


class ContrastNet(nn.Module):
    """Similarities to learned vectors, scaled: the head of CLIP's classifiers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.project = nn.Conv2d(8, 7, 1)
        self.names = nn.Parameter(torch.randn(CLASSES, 7))
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        found = F.normalize(pooled(self.project(self.stem(x))), dim=-1)
        return self.scale.exp() * found @ F.normalize(self.names, dim=-1).t()


class VladNet(nn.Module):
    """Residuals to soft centres, flattened and normalised (NetVLAD): two channels an entry."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.assign = nn.Conv1d(8, 5, 1)
        self.centres = nn.Parameter(torch.randn(1, 5, 8))
        self.fc = nn.Linear(40, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.normalize(self.stem(x).flatten(2), dim=1)
        weights = self.assign(x).softmax(1)
        found = torch.einsum("nkp,ncp->nkc", weights, x)
        found = found - weights.sum(2, keepdim=True) * self.centres
        return self.fc(F.normalize(F.normalize(found, dim=2).flatten(1)))
