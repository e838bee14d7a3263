"""Small networks of parts that many networks share: gates, bins of boxes, torch's own attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.small_networks import CLASSES


class GatesNet(nn.Module):
    """Linear units that others gate, and attention to places by extremes over channels (CBAM)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.unit = nn.Conv2d(3, 12, 3), nn.GLU(1)
        self.places = nn.Conv2d(3, 1, 3, padding=1)
        self.second, self.head = nn.Conv2d(6, 10, 3), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.unit(self.first(x))
        most, least = x.max(dim=1, keepdim=True).values, torch.min(x, 1, keepdim=True)[0]
        x = x * self.places(torch.cat((most, least, x.mean(1, keepdim=True)), 1)).sigmoid()
        return self.head(F.glu(self.second(x), dim=1).mean((2, 3)))


class BinsNet(nn.Module):
    """Sides of boxes as distributions over bins, beside scores of classes (YOLOv8)."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.classes = classes
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU())
        self.down = nn.Sequential(nn.Conv2d(8, 10, 3, 2, 1), nn.BatchNorm2d(10), nn.SiLU())
        self.sides = nn.ModuleList(nn.Conv2d(n, 12, 1) for n in (8, 10))
        self.scores = nn.ModuleList(nn.Conv2d(n, classes, 1) for n in (8, 10))
        self.bins = nn.Conv2d(3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        fine = self.stem(x)
        levels = [fine, self.down(fine)]
        maps = [
            torch.cat((side(level), score(level)), 1)
            for side, score, level in zip(self.sides, self.scores, levels, strict=True)
        ]
        flat = torch.cat([m.view(x.shape[0], 12 + self.classes, -1) for m in maps], 2)
        sides, scores = flat.split((12, self.classes), 1)
        count = sides.shape[2]
        shares = sides.view(x.shape[0], 4, 3, count).transpose(2, 1).softmax(1)
        boxes = self.bins(shares).view(x.shape[0], 4, count)
        return torch.cat((boxes, scores.sigmoid()), 1), maps


class KeypointsNet(nn.Module):
    """Points and whether they can be seen, channel after channel (YOLOv8)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU())
        self.points = nn.Conv2d(8, 4 * 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.points(self.stem(x))
        x = x.view(x.shape[0], 12, -1)
        x = torch.slice_scatter(x, x[:, 2::3].sigmoid(), 1, 2, None, 3)
        x = torch.slice_scatter(x, (x[:, 0::3] * 2.0 + 0.5) * 8, 1, 0, None, 3)
        return torch.slice_scatter(x, (x[:, 1::3] * 2.0 - 0.5) * 8, 1, 1, None, 3)


class AnchorsNet(nn.Module):
    """Boxes around anchors, decoded side by side at every place (YOLOv5)."""

    anchors: Tensor

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.classes = classes
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.SiLU())
        self.down = nn.Sequential(nn.Conv2d(8, 10, 3, 2, 1), nn.BatchNorm2d(10), nn.SiLU())
        self.heads = nn.ModuleList(nn.Conv2d(n, 2 * (5 + classes), 1) for n in (8, 10))
        self.register_buffer("anchors", torch.tensor([[1.0, 2.0], [2.0, 1.0]]))

    def forward(self, x: Tensor) -> Tensor:
        fine = self.stem(x)
        found = []
        for head, level in zip(self.heads, (fine, self.down(fine)), strict=True):
            y = head(level)
            n, _, height, width = y.shape
            y = y.view(n, 2, 5 + self.classes, height, width).permute(0, 1, 3, 4, 2).contiguous()
            rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            places = torch.stack((columns, rows), 2).expand(1, 2, height, width, 2)
            centre, size, score = y.sigmoid().split((2, 2, 1 + self.classes), 4)
            size = (size * 2) ** 2 * self.anchors.view(1, 2, 1, 1, 2)
            boxes = torch.cat((centre * 2 + places - 0.5, size, score), 4)
            found.append(boxes.view(n, -1, 5 + self.classes))
        return torch.cat(found, 1)


class QueriesNet(nn.Module):
    """torch's own transformer, asked by learned queries for boxes and their classes (DETR)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 2, stride=2)
        self.transformer = nn.Transformer(8, 2, 1, 1, 10, batch_first=True)
        self.queries = nn.Parameter(torch.zeros(3, 8))
        self.places = nn.Parameter(torch.zeros(1, 16, 8))
        self.classes, self.boxes = nn.Linear(8, CLASSES), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x).flatten(2).transpose(1, 2) + self.places
        x = self.transformer(x, self.queries.unsqueeze(0).repeat(x.shape[0], 1, 1))
        return {"classes": self.classes(x), "boxes": self.boxes(x).sigmoid()}


class EnergyNet(nn.Module):
    """Outputs that come of all channels, and are no channels themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu()).square().mean((1, 2, 3))


class EncoderNet(nn.Module):
    """torch's own attention, and layers around it, as one module each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 2, stride=2), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2)
        layer = nn.TransformerEncoderLayer(8, 2, 10, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).permute(2, 0, 1)
        read = self.norm(x)
        x = x + self.attention(read, read, read)[0]
        return self.head(self.encoder(x.transpose(0, 1)).mean(1))


class InvolutionNet(nn.Module):
    """Kernels that layers make of each place, one for every group of channels (Li et al. 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.shrink, self.kernels = nn.Conv2d(8, 5, 1), nn.Conv2d(5, 4 * 9, 1)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        n, _, height, width = x.shape
        kernels = self.kernels(self.shrink(x).relu()).view(n, 4, 1, 9, height, width)
        windows = F.unfold(x, 3, padding=1).view(n, 4, 2, 9, height, width)
        x = (kernels * windows).sum(3).view(n, 8, height, width)
        return self.head(x.relu().mean((2, 3)))


class PatchesNet(nn.Module):
    """Image to windows and back; one channel beside others says how much of each place is read
    (MobileViT v2).
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.mixed, self.out = nn.Conv2d(6, 1 + 2 * 10, 1), nn.Conv2d(10, 6, 1)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()[..., :8, :8]
        n, c, height, width = x.shape
        patches = F.unfold(x, 2, stride=2).view(n, c, 4, -1)
        query, key, value = self.mixed(patches).split((1, 10, 10), 1)
        read = (key * query.softmax(-1)).sum(-1, keepdim=True)
        patches = patches + self.out(value.relu() * read)
        image = F.fold(patches.reshape(n, c * 4, -1), (height, width), 2, stride=2)
        return self.head(image.mean((2, 3)))


class ColumnsNet(nn.Module):
    """Columns of an image read one after the other, both ways, as for lines of text (CRNN)."""

    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.steps = kind(4 * 4, 6, num_layers=2, bidirectional=True)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.norm(self.stem(x)).relu(), 2)
        columns, _ = self.steps(x.flatten(1, 2).permute(2, 0, 1))
        return self.head(columns).permute(1, 2, 0)


class LastStateNet(nn.Module):
    """Rows of an image read one after the other; the states of both layers at the end count."""

    def __init__(self, kind: type[nn.RNNBase] = nn.GRU) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.steps = kind(6, 7, num_layers=2, batch_first=True)
        self.first, self.last = nn.Linear(7, 5), nn.Linear(7, 5)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        _, states = self.steps(self.norm(self.stem(x)).relu().mean(3).transpose(1, 2))
        return self.head((self.first(states[0]) + self.last(states[-1])).relu())


class SwappedNet(nn.Module):
    """Halves that change places, joined as the tuple that they are."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.mixed = nn.Conv2d(8, 6, 3, padding=1)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = torch.cat(x.chunk(2, 1)[::-1], 1)
        return self.head(self.mixed(x).relu().mean((2, 3)))
