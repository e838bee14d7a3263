"""Calibration data and labels from a specification: image folders, array files, Python loaders."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pleas_fx.calibration import IMAGE_KEYS
from pleas_fx.checkpoints import read_tensors
from pleas_fx.errors import CalibrationError, OptionError, SourceError
from pleas_fx.python_files import load_attribute, suggestion

if TYPE_CHECKING:
    import numpy.typing as npt

FORMS = "a folder of images, .npz[:key], .npy, .safetensors[:key], .pt[:key] or file.py:loader"
ARRAYS = re.compile(r"(?P<file>.+\.(?:npz|npy|safetensors|pt|pth))(?::(?P<key>[^:/\\]+))?\Z")
IMAGES = frozenset(".png .jpg .jpeg .bmp .gif .webp .tif .tiff .ppm .pgm .pbm".split())
LABEL_KEYS = ("labels", "label", "targets", "target", "y")
COLOURS = (1, 3)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def load_calibration(
    spec: str,
    *,
    input_shape: Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    samples: int | None = None,
) -> object:
    """Calibration data that :func:`pleas_fx.calibration.collect` takes.

    Pixels (images, uint8 arrays) become floats in [0, 1], then ``(x - mean) / std``; floating
    point arrays stay as they are unless ``mean`` and ``std`` are given.

    Args:
        spec: a folder of images, ``.npz[:key]``, ``.npy``, ``.safetensors[:key]``, ``.pt[:key]``
            or ``file.py:loader``.
        input_shape: (C, H, W) of the network; images are resized to it.
        mean, std: one a channel. None: ImageNet's for three channels, else 0 and 1.
        samples: how many examples to take, evenly spread; None: all.

    Raises:
        SourceError: the file can't be read. CalibrationError: what is in it is no calibration data.
    """
    if samples is not None and samples < 1:
        raise OptionError(f"samples must be at least 1, not {samples}")
    if Path(spec).is_dir():
        return _image_folder(Path(spec), input_shape, mean, std, samples)
    found = ARRAYS.match(spec)
    if found:
        array = _read_array(Path(found["file"]), found["key"], IMAGE_KEYS)
        tensor = _prepared(array, spec, input_shape, mean, std)
        return tensor if samples is None else tensor[_spread(len(tensor), samples)]
    if ".py:" in spec:
        return load_attribute(spec)
    missing = not Path(spec).exists()
    reason = "no such file or folder" if missing else f"expected {FORMS}"
    raise SourceError(f"{spec}: {reason}")


def load_labels(spec: str) -> Tensor:
    """One whole number an example, from an array file or ``file.py:loader``."""
    found = ARRAYS.match(spec)
    if found:
        labels = _read_array(Path(found["file"]), found["key"], LABEL_KEYS)
    else:
        value = load_attribute(spec)
        labels = value if isinstance(value, Tensor) else torch.as_tensor(value)
    if labels.dim() != 1 or labels.is_floating_point() or labels.is_complex():
        raise CalibrationError(
            f"{spec}: labels must be whole numbers of shape (N,), "
            f"found {labels.dtype} of shape {tuple(labels.shape)}"
        )
    return labels.to(torch.int64)


def _read_array(path: Path, key: str | None, usual: Sequence[str]) -> Tensor:
    if not path.is_file():
        raise SourceError(f"{path}: no such file")
    if path.suffix in (".npy", ".npz"):
        return _tensor(_read_numpy(path, key, usual), path)
    found = read_tensors(path)
    if isinstance(found, Mapping):
        found = found[_key(path, key, usual, [str(k) for k in found])]
    if not isinstance(found, Tensor):
        raise SourceError(f"{path}: holds {type(found).__name__}, expected a tensor")
    return found


def _read_numpy(path: Path, key: str | None, usual: Sequence[str]) -> npt.NDArray[np.generic]:
    try:
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)
            if isinstance(found, np.ndarray):
                return found
            chosen = _key(path, key, usual, list(found.files))
            array: npt.NDArray[np.generic] = found[chosen]
            return array
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        reason = "holds Python objects" if "pickle" in str(error).lower() else "can't be read"
        raise SourceError(f"{path}: {reason}, expected plain arrays") from error


def _key(path: Path, key: str | None, usual: Sequence[str], known: Sequence[str]) -> str:
    """The entry to read: the one asked for, the only one, or one with a usual name."""
    if key is not None:
        if key not in known:
            raise SourceError(f"{path}: has no entry {key!r}{suggestion(key, known)}")
        return key
    candidates = [*known] if len(known) == 1 else [k for k in usual if k in known]
    if not candidates:
        raise SourceError(f"{path}: has entries {', '.join(known) or '(none)'}; add :KEY")
    return candidates[0]


def _tensor(array: npt.NDArray[np.generic], path: Path) -> Tensor:
    try:
        return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))
    except (TypeError, ValueError) as error:
        raise SourceError(f"{path}: is an array of {array.dtype}, expected numbers") from error


def _prepared(
    array: Tensor,
    spec: str,
    input_shape: Sequence[int] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Tensor:
    if array.dtype == torch.uint8:
        channels = input_shape[0] if input_shape and len(input_shape) == 3 else None
        return normalised(_channels_first(array, spec, channels), mean, std)
    if (mean is None and std is None) or not array.is_floating_point():
        return array
    if array.dim() != 4:
        raise CalibrationError(
            f"{spec}: mean and std need shape (N, C, H, W), found {tuple(array.shape)}"
        )
    return _standardised(array, mean, std)


def _channels_first(pixels: Tensor, spec: str, channels: int | None) -> Tensor:
    """Bytes (N, H, W), (N, H, W, C) or (N, C, H, W) as (N, C, H, W)."""
    shape = tuple(pixels.shape)
    if pixels.dim() == 3:
        pixels = pixels.unsqueeze(1)
    elif pixels.dim() == 4 and shape[1] not in COLOURS and shape[3] in (*COLOURS, 4):
        pixels = pixels.permute(0, 3, 1, 2)[:, :3]  # without an alpha channel
    elif pixels.dim() != 4:
        raise CalibrationError(
            f"{spec}: uint8 pixels need shape (N, H, W), (N, H, W, C) or (N, C, H, W), "
            f"found {shape}"
        )
    if channels == 3 and pixels.shape[1] == 1:
        return pixels.expand(-1, 3, -1, -1)
    return pixels


def normalised(
    pixels: Tensor, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> Tensor:
    """Bytes (N, C, H, W) as the float32 input of a network."""
    return _standardised(pixels.to(torch.float32) / 255, mean, std)


def _standardised(
    values: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Tensor:
    channels = values.shape[1]
    usual = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.0,), (1.0,))
    centre = tuple(mean) if mean is not None else usual[0]
    scale = tuple(std) if std is not None else usual[1]
    for name, numbers in (("mean", centre), ("std", scale)):
        if len(numbers) not in (1, channels):
            raise OptionError(f"{name} has {len(numbers)} values, the images {channels} channels")
    if any(s <= 0 for s in scale):
        raise OptionError(f"std must be positive, not {list(scale)}")
    shape = (1, -1, 1, 1)
    return (values - values.new_tensor(centre).view(shape)) / values.new_tensor(scale).view(shape)


def _spread(total: int, samples: int) -> Tensor:
    """``samples`` indices, evenly spread over ``total``."""
    return torch.arange(min(samples, total)) * total // min(samples, total)


def _image_folder(
    folder: Path,
    input_shape: Sequence[int] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    samples: int | None,
) -> Tensor:
    if input_shape is not None and len(input_shape) != 3:
        raise OptionError(f"images need an input of shape (C, H, W), not {tuple(input_shape)}")
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGES and p.is_file())
    if not files:
        raise CalibrationError(f"{folder}: has no images ({', '.join(sorted(IMAGES))})")
    if samples is not None:
        files = [files[i] for i in _spread(len(files), samples).tolist()]
    channels, height, width = input_shape or (3, None, None)
    if channels not in COLOURS:
        raise OptionError(f"images have 1 or 3 channels, the network's input has {channels}")
    pixels = [_read_image(file, channels, height, width) for file in files]
    odd = next((i for i, p in enumerate(pixels) if p.shape != pixels[0].shape), None)
    if odd is not None:
        raise CalibrationError(
            f"{files[odd]}: has another size than {files[0].name}; give the input shape to resize"
        )
    return normalised(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2), mean, std)


def _read_image(
    file: Path, channels: int, height: int | None, width: int | None
) -> npt.NDArray[np.uint8]:
    from PIL import Image

    try:
        with Image.open(file) as image:
            picture = image.convert("RGB" if channels == 3 else "L")
            if height is not None and width is not None and picture.size != (width, height):
                picture = picture.resize((width, height), Image.Resampling.BILINEAR)
            pixels = np.asarray(picture, dtype=np.uint8)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise CalibrationError(f"{file}: can't be read as an image") from error
    return pixels if channels == 3 else pixels[..., None]
