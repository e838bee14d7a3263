"""Small networks that mix tokens, or stand other tokens beside those of the image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.small_networks import CLASSES

TOKENS = 16  # of 4 x 4 pixels


def tokens(stem: nn.Module, x: Tensor) -> Tensor:
    """(images, tokens, channels)."""
    found: Tensor = stem(x).flatten(2).transpose(1, 2)
    return found


class MixerNet(nn.Module):
    """A layer's hidden channels beside those of the tokens that it mixes (MLP-Mixer)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm1 = nn.Conv2d(3, 8, 2, stride=2), nn.LayerNorm(8)
        self.mix, self.unmix = nn.Linear(TOKENS, 6), nn.Linear(6, TOKENS)
        self.norm2, self.head = nn.LayerNorm(8), nn.Linear(8, CLASSES)
        self.expand, self.contract = nn.Linear(8, 10), nn.Linear(10, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = tokens(self.stem, x)
        x = x + self.unmix(F.gelu(self.mix(self.norm1(x).transpose(1, 2)))).transpose(1, 2)
        x = x + self.contract(F.gelu(self.expand(self.norm2(x))))
        return self.head(x.mean(1))


class GateNet(nn.Module):
    """Half of the channels gate the others, after a layer has mixed the tokens (gMLP)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm1 = nn.Conv2d(3, 8, 2, stride=2), nn.LayerNorm(8)
        self.expand, self.contract = nn.Linear(8, 18), nn.Linear(9, 8)
        self.norm2, self.mix = nn.LayerNorm(9), nn.Linear(TOKENS, TOKENS)
        self.again, self.head = nn.Linear(TOKENS, TOKENS), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = tokens(self.stem, x)
        gated, gate = F.gelu(self.expand(self.norm1(x))).chunk(2, dim=2)
        gate = self.mix(self.norm2(gate).transpose(1, 2)).transpose(1, 2)
        x = x + self.contract(gated * gate)
        return self.head((x + self.again(x.transpose(1, 2)).transpose(1, 2)).mean(1))


class RegisterNet(nn.Module):
    """Tokens that are no part of the image, exchangeable among themselves (DINOv3)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 2, stride=2), nn.LayerNorm(8)
        self.token, self.registers = (nn.Parameter(torch.zeros(1, n, 8)) for n in (1, 3))
        self.qkv, self.project = nn.Linear(8, 24), nn.Linear(8, 8)
        self.head = nn.Linear(8, CLASSES)

    def attend(self, x: Tensor) -> Tensor:
        """Two heads of four channels."""
        q, k, v = self.qkv(x).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.project(mixed.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        x = tokens(self.stem, x)
        own = [t.expand(x.shape[0], -1, -1) for t in (self.token, self.registers)]
        x = torch.cat((*own, x), dim=1)
        x = x + self.attend(self.norm(x))
        return self.head(x[:, 0])


class RotaryNet(nn.Module):
    """Norms inside of heads, turned by constants; a table of places, one for each side (Gemma)."""

    rates: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 2, stride=2), nn.RMSNorm(8)
        self.places = nn.Parameter(torch.zeros(2, TOKENS, 8))
        self.register_buffer("rates", torch.tensor([1.0, 0.1]), persistent=False)
        self.queries, self.keys, self.values = (nn.Linear(8, 12) for _ in range(3))
        self.query_norm, self.key_norm = nn.RMSNorm(4), nn.RMSNorm(4)
        self.project, self.head = nn.Linear(12, 8), nn.Linear(8, CLASSES)

    def turned(self, x: Tensor, count: int) -> Tensor:
        """By an angle that grows with a token's number, at the rate of its pair of channels."""
        angles = torch.arange(count)[:, None] * self.rates.repeat(2)
        one, other = x.chunk(2, dim=-1)
        return x * angles.cos() + torch.cat((-other, one), -1) * angles.sin()

    def forward(self, x: Tensor) -> Tensor:
        x = tokens(self.stem, x)
        n, count, _ = x.shape
        along = torch.arange(count, device=x.device)
        chosen = F.one_hot(torch.stack((along // 4, along % 4)), TOKENS).to(self.places)
        x = x + (chosen @ self.places).sum(0)
        read = self.norm(x)
        q, k, v = (
            layer(read).view(n, count, 3, 4) for layer in (self.queries, self.keys, self.values)
        )
        q, k, v = self.query_norm(q), self.key_norm(k), F.rms_norm(v, (4,))
        q, k = (self.turned(y.transpose(1, 2), count) for y in (q, k))
        mixed = F.scaled_dot_product_attention(q, k, v.transpose(1, 2))
        x = x + self.project(mixed.transpose(1, 2).flatten(2))
        return self.head(F.layer_norm(x.mean(1), (8,)))


class RelativeNet(nn.Module):
    """A layer makes biases of the places' distances; heads are as wide as the stream they leave."""

    distances: Tensor
    which: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 12, 2, stride=2), nn.BatchNorm2d(12)
        at = torch.arange(TOKENS)
        apart = torch.stack([p[:, None] - p[None] + 3 for p in (at // 4, at % 4)])
        self.register_buffer("which", (apart[0] * 7 + apart[1]).flatten(), persistent=False)
        grid = torch.cartesian_prod(torch.linspace(-1, 1, 7), torch.linspace(-1, 1, 7))
        self.register_buffer("distances", grid, persistent=False)
        self.expand, self.bias = nn.Linear(2, 6), nn.Linear(6, 3)
        self.qkv, self.project = nn.Linear(12, 36), nn.Linear(12, 12)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).flatten(2).transpose(1, 2)
        n, count, width = x.shape
        q, k, v = self.qkv(x).reshape(n, count, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
        biases = self.bias(F.relu(self.expand(self.distances))).view(-1, 3)[self.which]
        biases = biases.view(count, count, 3).permute(2, 0, 1)
        mixed = ((q @ k.transpose(2, 3)) / 2 + biases).softmax(-1) @ v
        x = x + self.project(mixed.transpose(1, 2).reshape(n, count, width))
        return self.head(x.mean(1))


class TransformNet(nn.Module):
    """One matrix along both sides of every patch, whose numbers are put in order (CSATv2)."""

    order: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(4))
        self.register_buffer("order", torch.tensor([0, 1, 4, 8, 5, 2, 3, 6, 9, 12, 13, 10, 7, 11]))
        self.mean = nn.Parameter(torch.zeros(3, 14))
        self.first, self.second = nn.Conv2d(14, 6, 1), nn.Conv2d(28, 5, 1)
        self.norm, self.head = nn.BatchNorm2d(11), nn.Linear(11, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        n, _, height, width = x.shape
        x = x.view(n, 3, height // 4, 4, width // 4, 4).permute(0, 2, 4, 1, 3, 5)
        x = F.linear(F.linear(x, self.matrix).transpose(4, 5), self.matrix).transpose(4, 5)
        x = x.reshape(-1, 3, 16)[:, :, self.order] - self.mean
        x = x.view(n, height // 4, width // 4, 3, 14).permute(0, 3, 4, 1, 2)
        x = torch.cat((self.first(x[:, 0]), self.second(x[:, 1:].flatten(1, 2))), 1)
        return self.head(F.relu(self.norm(x)).mean((2, 3)))
