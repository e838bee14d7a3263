"""Small networks whose channels are weighted by attention: over branches, over tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from tests.small_networks import CLASSES, conv_bn_relu, pooled


class SelectiveNet(nn.Module):
    """Two branches, weighted channel by channel with a softmax over the branches (SKNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn_relu(3, 6)
        self.small, self.large = conv_bn_relu(6, 9), conv_bn_relu(6, 9, kernel=5)
        self.squeeze, self.select = nn.Conv2d(9, 4, 1), nn.Conv2d(4, 18, 1)
        self.fc = nn.Linear(9, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        both = torch.stack([self.small(x), self.large(x)], 1)
        gate = self.select(F.relu(self.squeeze(both.sum(1).mean((2, 3), keepdim=True))))
        weights = gate.unflatten(1, (2, 9)).softmax(1)
        return self.fc(pooled((both * weights).sum(1)))


class WindowNet(nn.Module):
    """Attention in windows with a relative position table, LayerNorms and skips (Swin)."""

    index: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 2, stride=2)
        self.norm1, self.norm2 = nn.LayerNorm(12), nn.LayerNorm(12)
        self.qkv, self.project = nn.Linear(12, 36), nn.Linear(12, 12)
        self.table = nn.Parameter(torch.zeros(7, 3))
        self.register_buffer("index", torch.arange(4)[:, None] - torch.arange(4) + 3)
        self.expand, self.contract = nn.Linear(12, 20), nn.Linear(20, 12)
        self.head = nn.Linear(12, CLASSES)

    def attend(self, x: Tensor) -> Tensor:
        """Three heads of four channels; the windows are rows of the image."""
        q, k, v = self.qkv(x).unflatten(3, (3, 3, 4)).permute(3, 0, 1, 4, 2, 5).unbind(0)
        bias = self.table[self.index.flatten()].view(4, 4, 3).permute(2, 0, 1)
        scores = q @ k.transpose(3, 4) * 0.5 + bias
        return self.project((scores.softmax(-1) @ v).transpose(2, 3).flatten(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        x = x + self.attend(self.norm1(x))
        x = x + self.contract(F.gelu(self.expand(self.norm2(x))))
        return self.head(x.mean((1, 2)))


class GridNet(nn.Module):
    """A table over a grid of positions, a class token beside them, and patches that are joined."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 2, stride=2)
        self.table = nn.Parameter(torch.zeros(1, 8, 4, 4))
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.norm, self.qkv, self.project = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.join = nn.Linear(32, 10)
        self.head = nn.Linear(10, CLASSES)

    def attend(self, x: Tensor) -> Tensor:
        """Two heads of four channels."""
        q, k, v = self.qkv(x).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = (q @ k.transpose(2, 3) * 0.5).softmax(-1) @ v
        return self.project(mixed.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        x = (self.stem(x) + self.table).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), dim=1)
        x = x + self.attend(self.norm(x))
        x = x[:, 1:].unflatten(1, (2, 2, 2, 2)).transpose(2, 3).flatten(3)
        return self.head(self.join(x).mean((1, 2)))


class AggregatingNet(nn.Module):
    """Means of three stages with the same channels, summed up with weights (CoaT)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.more, self.last = (conv_bn_relu(n, 7) for n in (3, 7, 7))
        self.aggregate = nn.Conv1d(3, 1, 1)
        self.fc = nn.Linear(7, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        stages = [x := self.stem(x), x := x + self.more(x), x + self.last(x)]
        return self.fc(self.aggregate(torch.stack(list(map(pooled, stages)), 1)).flatten(1))


class LambdaNet(nn.Module):
    """Queries read keys mixed from the neighbours of every value channel (LambdaNetworks)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.qkv = conv_bn_relu(3, 6), nn.Conv2d(6, 2 * 4 + 4 + 5, 1)
        self.mix = nn.Conv3d(1, 4, (3, 3, 1), padding=(1, 1, 0))
        self.norm, self.fc = nn.BatchNorm2d(10), nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        n, _, height, width = (x := self.stem(x)).shape
        q, k, v = torch.split(self.qkv(x), [8, 4, 5], 1)
        q, v = q.reshape(n, 2, 4, -1).transpose(2, 3), v.reshape(n, 5, -1).transpose(1, 2)
        content = q @ (k.reshape(n, 4, -1).softmax(-1) @ v).unsqueeze(1)
        near = self.mix(v.reshape(n, 1, height, width, 5))
        near = near.reshape(n, 1, 4, -1, 5).transpose(2, 3)
        places = (q.unsqueeze(-2) @ near).squeeze(-2)
        read = (content + places).transpose(2, 3).reshape(n, 10, height, width)
        return self.fc(pooled(F.relu(self.norm(read))))


class Inside(nn.Module):
    """Hidden channels that no value of the graph carries: its code looks at sizes of its data."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.contract = nn.Linear(8, 11), nn.Linear(11, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        """As much as there is, which only a run tells, and what to do with it."""
        steps = 1 if float(x.abs().max()) < 1e9 else 2
        return self.contract(F.gelu(self.expand(x))), steps


class LeafNet(nn.Module):
    """A module that can't be followed, and gives a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 1), nn.LayerNorm(8)
        self.inside = Inside()
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        inside, _ = self.inside(self.norm(x))
        return self.head((x + inside).mean((1, 2)))


class MaskedNet(nn.Module):
    """Causal attention over the rows of an image: a mask and limits that are infinite."""

    mask: Tensor
    low: Tensor
    high: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = conv_bn_relu(3, 8), nn.LayerNorm(8)
        self.qkv, self.project = nn.Linear(8, 24), nn.Linear(8, 8)
        self.head = nn.Linear(8, CLASSES)
        self.register_buffer("mask", torch.full((8, 8), -torch.inf).triu(1))
        self.register_buffer("low", torch.tensor(-torch.inf))
        self.register_buffer("high", torch.tensor(torch.inf))

    def attend(self, x: Tensor) -> Tensor:
        """Two heads of four channels."""
        q, k, v = self.qkv(x).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = (q @ k.transpose(2, 3) * 0.5 + self.mask).softmax(-1) @ v
        return self.project(mixed.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).mean(3).transpose(1, 2)
        x = torch.clamp(x + self.attend(self.norm(x)), self.low, self.high)
        return self.head(x.mean(1))


@fx.wrap
def attention(x: Tensor, qkv: Tensor, project: Tensor, table: Tensor) -> Tensor:
    """Two heads of three channels, as one function of its weights that tracing can't enter."""
    if not isinstance(qkv, Tensor):  # a stand-in that records what is done with it
        raise TypeError("expected a tensor")
    q, k, v = F.linear(x, qkv).unflatten(2, (3, 2, 3)).permute(2, 0, 3, 1, 4).unbind(0)
    scores = (q @ k.transpose(2, 3) + table).softmax(-1)
    return F.linear((scores @ v).transpose(1, 2).flatten(2), project)


class WrappedNet(nn.Module):
    """Attention whose weights are arguments of a wrapped function (torchvision's Swin V2)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Linear(3, 8), nn.LayerNorm(8)
        self.qkv, self.project = nn.Linear(8, 18, bias=False), nn.Linear(6, 8, bias=False)
        self.table = nn.Parameter(torch.zeros(2, 1, 1))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.flatten(2).transpose(1, 2))
        y = attention(self.norm(x), 2.0 * self.qkv.weight, self.project.weight, self.table)
        return self.head((x + y).mean(1))
