"""Scenes to find things in: digits and garments of real image sets, pasted on coloured noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.accuracy.data import Images, load

SIZE = 128
OBJECTS = 4  # at most, in a scene
HEIGHTS = (24, 56)  # of an object, in pixels
OVERLAP = 0.1  # of two boxes, over the smaller one
TRIES = 20  # at a place for an object
INK = 0.1  # brightness from which a pixel belongs to an object

Box = tuple[int, int, int, int]  # left, top, right, bottom
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Kind:
    """What there is to find: some classes of an image set."""

    name: str
    classes: tuple[int, ...]


DIGITS = Kind("mnist", tuple(range(10)))
GARMENTS = Kind("fashion", (1, 3, 5, 7, 8))  # trousers, dress, sandal, sneaker, bag


@dataclass(frozen=True, slots=True)
class Scenes:
    """Images (N, 3, SIZE, SIZE) in 0 to 1 and their objects, a row (scene, kind, class, box)."""

    images: Tensor
    objects: Tensor  # (M, 7) float32; boxes as left, top, right, bottom, in pixels

    def of_kind(self, kind: int) -> Scenes:
        """The same images; only objects of one kind."""
        return Scenes(self.images, self.objects[self.objects[:, 1] == kind])


def scenes(kinds: Sequence[Kind], count: int, seed: int, *, test: bool, folder: Path) -> Scenes:
    """``count`` scenes with objects of all ``kinds``, each as likely as the others."""
    random = np.random.default_rng((seed, test, *map(len, (k.name for k in kinds))))
    sets = [_images(kind, test, folder) for kind in kinds]
    images, rows = np.empty((count, 3, SIZE, SIZE), np.float32), []
    for number in range(count):
        images[number] = _background(random)
        taken: list[Box] = []
        for _ in range(random.integers(1, OBJECTS + 1)):
            kind = int(random.integers(len(sets)))
            chosen = int(random.integers(len(sets[kind])))
            glyph = _glyph(sets[kind].pixels[chosen], random)
            box = _place(glyph, taken, random)
            if box is not None:
                taken.append(box)
                _paste(images[number], glyph, box, random)
                rows.append((number, kind, int(sets[kind].labels[chosen]), *box))
    return Scenes(torch.from_numpy(images), torch.tensor(rows, dtype=torch.float32).view(-1, 7))


@cache
def _images(kind: Kind, test: bool, folder: Path) -> Images:
    found = load(kind.name, folder)
    return (found.test if test else found.train).of_classes(kind.classes)


def _background(random: np.random.Generator) -> Floats:
    """Smooth coloured noise."""
    coarse = torch.from_numpy(random.normal(0, 0.12, (1, 3, 5, 5)).astype(np.float32))
    smooth = F.interpolate(coarse, (SIZE, SIZE), mode="bicubic", align_corners=False)[0].numpy()
    colour = random.uniform(0.1, 0.9, (3, 1, 1))
    fine = random.normal(0, 0.03, (3, SIZE, SIZE))
    return np.clip(smooth + colour + fine, 0, 1).astype(np.float32)


def _glyph(pixels: npt.NDArray[np.uint8], random: np.random.Generator) -> Floats:
    """An object at a random size, cut out to its box."""
    grey = pixels.astype(np.float32) / 255
    rows, columns = np.flatnonzero((grey > INK).any(1)), np.flatnonzero((grey > INK).any(0))
    cut = grey[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = random.integers(*HEIGHTS) / max(cut.shape)
    size = [max(round(side * scale), 4) for side in cut.shape]
    large = F.interpolate(
        torch.from_numpy(cut)[None, None], size, mode="bilinear", align_corners=False
    )
    return np.asarray(large[0, 0].numpy(), dtype=np.float32)


def _place(glyph: Floats, taken: list[Box], random: np.random.Generator) -> Box | None:
    height, width = glyph.shape
    for _ in range(TRIES):
        left, top = random.integers(SIZE - width + 1), random.integers(SIZE - height + 1)
        box = (int(left), int(top), int(left) + width, int(top) + height)
        if all(_overlap(box, other) <= OVERLAP for other in taken):
            return box
    return None


def _overlap(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / min((b[2] - b[0]) * (b[3] - b[1]) for b in (one, other))


def _paste(image: Floats, glyph: Floats, box: Box, random: np.random.Generator) -> None:
    """In a colour of its own; what is dark of an object is its shading."""
    left, top, right, bottom = box
    behind = image[:, top:bottom, left:right]
    colour = random.uniform(0.0, 1.0, (3, 1, 1)).astype(np.float32)
    apart = np.abs(colour - behind.mean((1, 2), keepdims=True)).max() < 0.35
    colour = np.where(apart, np.round(1 - behind.mean((1, 2), keepdims=True)), colour)
    opaque = np.clip(3 * glyph, 0, 1)
    behind[:] = behind * (1 - opaque) + colour * (0.4 + 0.6 * glyph) * opaque
