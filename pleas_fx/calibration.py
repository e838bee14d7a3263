"""Calibration data in any common form, checked and cut into batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from pleas_fx.errors import CalibrationError, OptionError
from pleas_fx.modes import ordinary

Shape = tuple[int, ...]

IMAGE_KEYS = ("image", "images", "x", "input", "inputs", "pixel_values")
MOST, FEWEST = 64, 8  # examples of a batch
NUMBERS = 1 << 20  # of a batch's inputs: 64 images of 3x64x64, or 8 of 3x224x224
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
FORMS = "a tensor (N, ...), batches (tensors, tuples (x, y), dicts) or PerSource of these"


@dataclass(frozen=True, slots=True, init=False)
class PerSource:
    """Calibration data by owner: entry ``s`` belongs to source ``s``."""

    sources: tuple[object, ...]

    def __init__(self, sources: Iterable[object]) -> None:
        object.__setattr__(self, "sources", tuple(sources))


@dataclass(frozen=True, slots=True)
class Batches:
    """Checked batches, one tensor an input, and the source each belongs to (None: not known)."""

    batches: Sequence[tuple[Tensor, ...]]
    owners: tuple[int | None, ...]

    @property
    def examples(self) -> int:
        """How many examples there are in all batches."""
        return sum(len(batch[0]) for batch in self.batches)

    def every(self, step: int, first: int = 0) -> Batches:
        """Every ``step``-th example of each batch, from the ``first`` on; no empty batches."""
        found = [
            (tuple(t[first::step] for t in batch), owner)
            for batch, owner in zip(self.batches, self.owners, strict=True)
            if len(batch[0]) > first
        ]
        return Batches(tuple(b for b, _ in found), tuple(owner for _, owner in found))

    def others(self, step: int) -> Batches:
        """What :meth:`every` leaves out, of each batch."""
        found = []
        for batch, owner in zip(self.batches, self.owners, strict=True):
            rest = torch.arange(len(batch[0])) % step != 0
            if rest.any():
                found.append((tuple(t[rest.to(t.device)] for t in batch), owner))
        return Batches(tuple(b for b, _ in found), tuple(owner for _, owner in found))

    def joined(self, most: int) -> Batches:
        """Neighbours of one owner in one batch, of ``most`` examples if they were smaller."""
        runs: list[list[int]] = []
        for k, (batch, owner) in enumerate(zip(self.batches, self.owners, strict=True)):
            run = runs[-1] if runs and self.owners[runs[-1][0]] == owner else []
            if not run or sum(len(self.batches[j][0]) for j in run) + len(batch[0]) > most:
                runs.append(run := [])
            run.append(k)
        return Batches(
            tuple(
                tuple(torch.cat(same) for same in zip(*(self.batches[k] for k in run), strict=True))
                for run in runs
            ),
            tuple(self.owners[run[0]] for run in runs),
        )


def collect(
    data: object,
    *,
    inputs: int = 1,
    batch_size: int | None = None,
    expected: Sequence[Shape] | None = None,
    dtype: torch.dtype | None = None,
    sources: int | None = None,
) -> Batches:
    """Read calibration data once, check it and cut it into batches of at most ``batch_size``.

    Without a batch size, up to 64 small examples make a batch, and as few as 8 large ones.

    Args:
        data: a tensor or array (N, …), a labelled set (x, labels), an iterable of batches (tensor;
            tuple (x, y, …), of which the first ``inputs`` tensors count; dict), or ``PerSource`` of
            these.
        expected: the shape of each input without the batch; None: the first batch decides.
        dtype: what the tensors are converted to; None: left as they are.
        sources: how many data sets ``PerSource`` must hold; None: not checked.

    Raises:
        CalibrationError: naming the batch and what is wrong with it.
    """
    if batch_size is not None and batch_size < 1:
        raise OptionError(f"batch_size must be at least 1, not {batch_size}")
    reader = _Reader(inputs, batch_size, None if expected is None else list(expected), dtype)
    if not isinstance(data, PerSource):
        batches = tuple(reader.read(data, ""))
        return Batches(batches, (None,) * len(batches))
    if not data.sources:
        raise CalibrationError("calibration data is empty: PerSource has no sources")
    if sources is not None and len(data.sources) != sources:
        raise CalibrationError(
            f"PerSource holds {len(data.sources)} data sets for {sources} models: give one for each"
        )
    found = [
        (batch, source)
        for source, own in enumerate(data.sources)
        for batch in reader.read(own, f" of source {source}")
    ]
    return Batches(tuple(b for b, _ in found), tuple(s for _, s in found))


@dataclass(slots=True)
class _Reader:
    """One pass over the data; ``shapes`` is fixed by the first batch when not given."""

    inputs: int
    batch_size: int | None
    shapes: list[Shape] | None
    dtype: torch.dtype | None

    def read(self, data: object, where: str) -> Iterator[tuple[Tensor, ...]]:
        number = -1
        held = isinstance(data, (Tensor, np.ndarray, Mapping, tuple, list))
        for number, item in enumerate(self._items(data, where)):
            tensors = self._tensors(item, f"calibration batch {number}{where}")
            if not held:  # a loader may write every batch into the same buffer
                tensors = tuple(t.clone() for t in tensors)
            size = self.batch_size or _fitting(tensors)
            yield from zip(*(torch.split(t, size) for t in tensors), strict=True)
        if number < 0:
            raise CalibrationError(f"calibration data{where} is empty: no batches")

    def _items(self, data: object, where: str) -> Iterator[object]:
        if isinstance(data, (Tensor, np.ndarray, Mapping)) or self._one_batch(data):
            yield data
            return
        if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
            raise CalibrationError(
                f"calibration data{where} is a Dataset of single examples: wrap it in a DataLoader"
            )
        if isinstance(data, (str, bytes, PerSource)) or not isinstance(data, Iterable):
            raise CalibrationError(
                f"calibration data{where} has type {type(data).__name__}, expected {FORMS}"
            )
        yield from _iterated(data, where)

    def _one_batch(self, data: object) -> bool:
        """Several inputs side by side, (x1, x2), or a labelled set: these can't be batches."""
        if labels_beside(data) is not None:
            return True
        return (
            self.inputs > 1
            and isinstance(data, (tuple, list))
            and len(data) >= self.inputs
            and all(isinstance(part, (Tensor, np.ndarray)) for part in data)
        )

    def _tensors(self, item: object, name: str) -> tuple[Tensor, ...]:
        found = _parts(item, self.inputs, name)
        if len(found) < self.inputs:
            raise CalibrationError(
                f"{name} has {len(found)} tensors, the network takes {self.inputs} inputs"
            )
        tensors = tuple(_tensor(part, name) for part in found[: self.inputs])
        if len({len(t) for t in tensors}) > 1:
            raise CalibrationError(
                f"{name}: the inputs have different lengths {[len(t) for t in tensors]}"
            )
        self._check_shapes(tensors, name)
        for number, tensor in enumerate(tensors):
            _check_finite(tensor, name if self.inputs == 1 else f"{name}, input {number}")
        return tensors if self.dtype is None else tuple(t.to(self.dtype) for t in tensors)

    def _check_shapes(self, tensors: Sequence[Tensor], name: str) -> None:
        shapes = [tuple(t.shape[1:]) for t in tensors]
        if self.shapes is None:
            self.shapes = shapes
        for number, (shape, wanted) in enumerate(zip(shapes, self.shapes, strict=False)):
            if shape != tuple(wanted):
                which = name if self.inputs == 1 else f"{name}, input {number}"
                raise CalibrationError(
                    f"{which} has shape {_show(shape)}, expected {_show(tuple(wanted))}"
                )


def labels_beside(data: object) -> Tensor | None:
    """The labels of a set (x, …, labels): whole numbers, one an example; None: it isn't one."""
    if not isinstance(data, (tuple, list)) or len(data) < 2:
        return None
    *inputs, last = data
    if not all(isinstance(part, (Tensor, np.ndarray)) for part in data) or last.ndim != 1:
        return None
    if isinstance(last, Tensor) and (last.is_floating_point() or last.is_complex() or last.is_meta):
        return None
    numbers = np.asarray(last.cpu() if isinstance(last, Tensor) else last)
    whole = np.issubdtype(numbers.dtype, np.integer)
    long = all(part.ndim > 1 and len(part) == len(last) for part in inputs)
    return torch.from_numpy(numbers.astype(np.int64)) if whole and long else None


def _fitting(tensors: Sequence[Tensor]) -> int:
    """Examples whose activations roughly stay in a processor's cache from layer to layer."""
    example = sum(t[0].numel() for t in tensors)
    return int(np.clip(NUMBERS // max(example, 1), FEWEST, MOST))


def _iterated(data: Iterable[object], where: str) -> Iterator[object]:
    """The items of a user's iterable; whatever it raises becomes one clear error."""
    number = 0
    try:
        for item in data:
            yield item
            number += 1
    except CalibrationError:
        raise
    except Exception as error:
        raise CalibrationError(
            f"calibration batch {number}{where} can't be read: {type(error).__name__}: {error}"
        ) from error


def _parts(item: object, inputs: int, name: str) -> list[Tensor | np.ndarray]:
    """The tensors of one batch, images first."""
    if isinstance(item, (Tensor, np.ndarray)):
        return [item]
    if isinstance(item, Mapping):
        known = [item[key] for key in IMAGE_KEYS if key in item] if inputs == 1 else []
        values = [*known, *item.values()]
    elif isinstance(item, (tuple, list)):
        values = list(item)
    else:
        raise CalibrationError(f"{name} has type {type(item).__name__}, expected {FORMS}")
    found = [v for v in values if isinstance(v, (Tensor, np.ndarray))]
    if not found:
        raise CalibrationError(f"{name} is a {type(item).__name__} without any tensor")
    return found


def _tensor(value: Tensor | np.ndarray, name: str) -> Tensor:
    if isinstance(value, Tensor):
        tensor = ordinary(value.detach())
    else:
        try:
            native = value.dtype.newbyteorder("=")
            tensor = torch.from_numpy(np.array(value, native))  # a copy: theirs may be read-only
        except (TypeError, ValueError) as error:
            raise CalibrationError(f"{name} is an array of {value.dtype}, not numbers") from error
    if tensor.dtype == torch.uint8:
        raise CalibrationError(
            f"{name} holds uint8 pixels: make them floating point, scaled and normalised as "
            "in training (x.float() if the network does that itself)"
        )
    if tensor.dtype not in DTYPES:
        raise CalibrationError(f"{name} has dtype {tensor.dtype}, expected floating point")
    if tensor.layout != torch.strided or tensor.is_meta:
        kind = "no values (device meta)" if tensor.is_meta else f"layout {tensor.layout}"
        raise CalibrationError(f"{name} has {kind}, expected a dense tensor")
    if tensor.dim() == 0:
        raise CalibrationError(f"{name} is a single number, expected a tensor (N, ...)")
    if tensor.numel() == 0:
        raise CalibrationError(f"{name} is empty: shape {tuple(tensor.shape)}")
    return tensor


def _check_finite(tensor: Tensor, name: str) -> None:
    wrong = ~torch.isfinite(tensor)
    if not wrong.any():
        return
    position = tuple(int(i) for i in wrong.nonzero()[0])
    kind = "NaN" if torch.isnan(tensor[position]) else "Inf"
    raise CalibrationError(f"{name} has {kind} at {list(position)}, {int(wrong.sum())} in all")


def _show(shape: Shape) -> str:
    """``(N, 3, 32, 32)``: a shape with the batch in front."""
    return "(" + ", ".join(["N", *map(str, shape)]) + ")"
