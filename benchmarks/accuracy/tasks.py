"""What networks are trained for: parts of image sets, and names for their classes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from benchmarks.accuracy.data import Images, ImageSet, load

LETTERS, DIGITS = 26, 10
TRAIN, TEST = 10_000, 2_000  # images a part, at most
KIND = {
    **dict.fromkeys(("serif", "sans", "mono", "handwriting"), ("letter", LETTERS)),
    **dict.fromkeys(("mnist", "digits", "typeset-digits"), ("digit", DIGITS)),
    "fashion": ("garment", DIGITS),
}


@dataclass(frozen=True, slots=True)
class Store:
    """Where things lie that are no part of the repository."""

    networks: Path
    data: Path


@dataclass(frozen=True, slots=True)
class Part:
    """Some classes of an image set; all of them without ``classes``."""

    name: str
    classes: tuple[int, ...] = ()

    @property
    def numbers(self) -> tuple[int, ...]:
        """The classes, as the set numbers them."""
        return self.classes or tuple(range(KIND[self.name][1]))

    @property
    def labels(self) -> tuple[str, ...]:
        """Names that sets with the same classes share."""
        return tuple(f"{KIND[self.name][0]} {k}" for k in self.numbers)

    def __str__(self) -> str:
        chosen = "".join(f"{k:x}" for k in self.classes)
        return f"{self.name}.{chosen}" if chosen else self.name


@dataclass(frozen=True, slots=True)
class Task:
    """One or several parts with one label space: every class once, in order of appearance."""

    parts: tuple[Part, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The label space."""
        return tuple(dict.fromkeys(name for part in self.parts for name in part.labels))

    def __str__(self) -> str:
        return "+".join(map(str, self.parts))


@cache
def image_set(name: str, folder: Path) -> ImageSet:
    """An image set, read once a process."""
    return load(name, folder)


def training_images(part: Part, store: Store) -> Images:
    """At most ``TRAIN`` of a part's training images; the same for every seed."""
    return image_set(part.name, store.data).train.of_classes(part.numbers).some(TRAIN, 0)


def test_images(part: Part, store: Store) -> Images:
    """At most ``TEST`` of a part's test images."""
    return image_set(part.name, store.data).test.of_classes(part.numbers).some(TEST, 0)


def joined(task: Task, store: Store) -> Images:
    """Training images of all parts, labelled in the task's label space."""
    own = [training_images(part, store) for part in task.parts]
    labels = [relabelled(p, i, task.labels) for p, i in zip(task.parts, own, strict=True)]
    return Images(np.concatenate([i.pixels for i in own]), np.concatenate(labels))


def relabelled(part: Part, images: Images, names: tuple[str, ...]) -> np.ndarray:
    """A part's labels as places in another label space."""
    places = np.array([names.index(name) for name in part.labels], np.int64)
    return np.asarray(places[images.labels])
