"""Public image sets, all as 28 x 28 grey images with labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Bytes = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

MEAN, STD = 0.2860, 0.3530  # one scale for all sets, since merged networks see images of several
BLACK = -MEAN / STD


class MissingDataError(Exception):
    """An image set isn't where it was looked for; says how to get it."""


@dataclass(frozen=True, slots=True)
class Images:
    """Images as bytes (N, 28, 28) with labels (N,)."""

    pixels: Bytes
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)

    def of_classes(self, classes: Sequence[int]) -> Images:
        """The images of some classes; labels are places in ``classes``."""
        places = np.full(max(int(self.labels.max()), *classes) + 1, -1, np.int64)
        places[list(classes)] = np.arange(len(classes))
        kept = places[self.labels] >= 0
        return Images(self.pixels[kept], places[self.labels[kept]])

    def some(self, count: int, seed: int) -> Images:
        """At most ``count`` images, drawn without replacement."""
        chosen = np.random.default_rng(seed).permutation(len(self))[:count]
        return Images(self.pixels[chosen], self.labels[chosen])

    @property
    def inputs(self) -> Tensor:
        """(N, 1, 28, 28) float32, normalised."""
        scaled = torch.from_numpy(self.pixels.astype(np.float32)).unsqueeze(1) / 255
        return (scaled - MEAN) / STD

    @property
    def targets(self) -> Tensor:
        """(N,) int64."""
        return torch.from_numpy(self.labels)


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Images to train on (and to calibrate with), and images to test on."""

    train: Images
    test: Images


SETS = ("fashion", "mnist", "digits", "serif", "sans", "mono", "handwriting", "typeset-digits")


def load(name: str, folder: Path) -> ImageSet:
    """An image set by name. ``folder``: where data lies that isn't installed elsewhere.

    Raises:
        MissingDataError: names what is missing and how to get it.
    """
    from benchmarks.accuracy.data import idx, typefaces
    from benchmarks.accuracy.data.handwritten import digits

    match name:
        case "fashion" | "mnist":
            return idx.load(name, folder)
        case "digits":
            return digits()
        case "typeset-digits":
            return typefaces.load(tuple(typefaces.DOMAINS), "0123456789", folder)
        case _ if name in SETS:
            return typefaces.load((name,), "ABCDEFGHIJKLMNOPQRSTUVWXYZ", folder)
    raise MissingDataError(f"no image set is called {name!r}: {', '.join(SETS)}")
