"""Small networks whose blocks meet other blocks: nested, crossed, with gaps, beside scales."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.small_networks import CLASSES, conv_bn_relu, pooled


class NestedNet(nn.Module):
    """Every channel becomes two, and each of these two again (PiT, FastViT)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn_relu(3, 4)
        self.first = nn.Conv2d(4, 8, 3, padding=1, groups=4)
        self.second = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.norm = nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.first(self.stem(x)))
        return self.fc(pooled(F.relu(self.norm(self.second(x)))))


class CrossedNet(nn.Module):
    """Branches are groups of a convolution, then weighted against each other (ResNeSt)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn_relu(3, 6)
        self.branches, self.norm = nn.Conv2d(6, 18, 3, padding=1, groups=2), nn.BatchNorm2d(18)
        self.squeeze, self.select = nn.Conv2d(9, 4, 1), nn.Conv2d(4, 18, 1)
        self.fc = nn.Linear(9, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.branches(self.stem(x)))).unflatten(1, (2, 9))
        gate = self.select(F.relu(self.squeeze(x.sum(1).mean((2, 3), keepdim=True))))
        return self.fc(pooled((x * gate.unflatten(1, (2, 9)).softmax(1)).sum(1)))


class LinearAttentionNet(nn.Module):
    """Linear attention whose values are padded by a one to sum up the weights (EfficientViT)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn_relu(3, 8)
        self.qkv = nn.Conv2d(8, 36, 1)
        self.mix = nn.Conv2d(36, 36, 1, groups=9)
        self.project = nn.Conv2d(24, 8, 1)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        qkv = self.qkv(x)
        heads = torch.cat([qkv, self.mix(qkv)], 1).flatten(2).unflatten(1, (6, 12))
        q, k, v = heads.transpose(2, 3).chunk(3, -1)
        mixed = F.relu(q) @ (F.relu(k).transpose(2, 3) @ F.pad(v, (0, 1), value=1.0))
        mixed = mixed[..., :-1] / (mixed[..., -1:] + 0.1)
        mixed = mixed.transpose(2, 3).flatten(1, 2).unflatten(2, (8, 8))
        return self.fc(pooled(x + self.project(mixed)))


class CrossChannelNet(nn.Module):
    """Attention between channels, a learned temperature a head, norms inside heads (XCiT)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn_relu(3, 12)
        self.qkv, self.project = nn.Linear(12, 36), nn.Linear(12, 12)
        self.temperature = nn.Parameter(torch.ones(3, 1, 1))
        self.inner = nn.LayerNorm(4)
        self.fc = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(x).unflatten(2, (3, 3, 4)).permute(2, 0, 3, 4, 1).unbind(0)
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(2, 3)
        mixed = (scores * self.temperature).softmax(-1) @ v
        mixed = self.inner(mixed.permute(0, 3, 1, 2)).flatten(2)
        return self.fc((x + self.project(mixed)).mean(1))
