"""A recipe: everything a merge needs, from a YAML file or from the command line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from pleas_fx.commands.inputs import Shape
from pleas_fx.errors import OptionError, SourceError
from pleas_fx.result import RecipeValue

COUNTS = ("samples", "synthetic", "trials", "distil")
BUDGETS = ("width", "flops", "params", "latency", "widths")
PARTS = re.compile(r"(@|:(?![/\\]))")  # what separates the files of a specification


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to merge, on which data, to which size."""

    sources: tuple[str, ...] = ()
    calibration: str | tuple[str, ...] | None = None  # a tuple: one for each source
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    samples: int | None = None
    synthetic: int | None = None  # inputs made for every source
    trials: int | None = None  # other plans that are fitted
    distil: int | None = None  # steps of training, after the fit
    input: tuple[Shape, ...] = ()
    width: float | None = None
    flops: float | None = None
    params: float | None = None
    latency: float | None = None
    widths: Mapping[int, float] | None = None
    heads: str | None = None
    classes: tuple[tuple[str, ...], ...] | None = None
    method: str | None = None
    seed: int | None = None
    out: str | None = None

    def updated(self, other: Recipe) -> Recipe:
        """This recipe with what ``other`` says; a budget replaces any other budget."""
        given = {f.name: getattr(other, f.name) for f in fields(other)}
        given = {name: value for name, value in given.items() if value not in (None, ())}
        cleared = dict.fromkeys(BUDGETS) if any(b in given for b in BUDGETS) else {}
        return replace(self, **{**cleared, **given})

    def options(self) -> dict[str, Any]:
        """The keyword arguments of ``merge`` and ``plan`` that are set."""
        names = (*BUDGETS, "heads", "classes", "method", "seed", "synthetic", "trials", "distil")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def origin(self) -> dict[str, RecipeValue]:
        """What the library can't know: where models and data come from."""
        found: dict[str, RecipeValue] = {"sources": list(self.sources)}
        if isinstance(self.calibration, str):
            found["calibration"] = self.calibration
        elif self.calibration is not None:
            found["calibration"] = list(self.calibration)
        normalise: dict[str, RecipeValue] = {
            name: list(value)
            for name, value in (("mean", self.mean), ("std", self.std))
            if value is not None
        }
        if normalise:
            found["normalise"] = normalise
        if self.samples is not None:
            found["samples"] = self.samples
        if self.input:
            shapes: list[RecipeValue] = [list(size) for size in self.input]
            found["input"] = shapes[0] if len(shapes) == 1 else shapes
        return found


def read(path: Path) -> Recipe:
    """A recipe from YAML. Files are looked up from here, then from beside the recipe.

    Raises:
        SourceError: no such file, or not YAML. OptionError: naming the key that is wrong.
    """
    import yaml

    if not path.is_file():
        raise SourceError(f"{path}: no such file")
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        place = getattr(error, "problem_mark", None)
        line = f" at line {place.line + 1}" if place is not None else ""
        raise SourceError(f"{path}: isn't valid YAML{line}") from error
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise OptionError(f"{path}: expected keys and values, such as 'sources:' and 'flops:'")
    try:
        return _recipe(found, path.parent)
    except OptionError as error:
        raise OptionError(f"{path}: {error}") from error


def _recipe(found: Mapping[str, Any], folder: Path) -> Recipe:
    known = {f.name for f in fields(Recipe)} - {"mean", "std"} | {"normalise"}
    unknown = [key for key in found if key not in known]
    if unknown:
        raise OptionError(f"unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}")
    values = {key: value for key, value in found.items() if value is not None}
    normalise = values.pop("normalise", {})
    if not isinstance(normalise, Mapping) or set(normalise) - {"mean", "std"}:
        raise OptionError("normalise: expected mean and std")
    read_values = {key: READERS[key](key, value) for key, value in values.items()}
    for name, value in normalise.items():
        read_values[name] = _numbers(name, value)
    recipe = Recipe(**read_values)
    calibration = recipe.calibration
    if isinstance(calibration, str):
        calibration = _located(calibration, folder)
    elif calibration is not None:
        calibration = tuple(_located(spec, folder) for spec in calibration)
    sources = tuple(_located(spec, folder) for spec in recipe.sources)
    return replace(recipe, sources=sources, calibration=calibration)


def _located(spec: str, folder: Path) -> str:
    """The specification with its files beside the recipe, where they aren't found from here."""
    parts = PARTS.split(spec)
    for number, part in enumerate(parts):
        if part not in (":", "@", "") and not Path(part).exists() and (folder / part).exists():
            parts[number] = str(folder / part)
    return "".join(parts)


def _number(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise OptionError(f"{key}: expected a number, not {value!r}")
    return float(value)


def _whole(key: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise OptionError(f"{key}: expected a whole number, not {value!r}")
    return value


def _text(key: str, value: object) -> str:
    if not isinstance(value, str):
        raise OptionError(f"{key}: expected text, not {value!r}")
    return value


def _list(key: str, value: object) -> Sequence[object]:
    if not isinstance(value, list):
        raise OptionError(f"{key}: expected a list, not {value!r}")
    return value


def _texts(key: str, value: object) -> tuple[str, ...]:
    return tuple(_text(key, item) for item in _list(key, value))


def _numbers(key: str, value: object) -> tuple[float, ...]:
    items = value if isinstance(value, list) else [value]
    return tuple(_number(key, item) for item in items)


def _shapes(key: str, value: object) -> tuple[Shape, ...]:
    items = _list(key, value)
    rows = items if items and all(isinstance(row, list) for row in items) else [items]
    return tuple(tuple(_whole(key, size) for size in _list(key, row)) for row in rows)


def _classes(key: str, value: object) -> tuple[tuple[str, ...], ...]:
    return tuple(
        tuple(str(name) for name in _list(f"{key} of source {s}", own))
        for s, own in enumerate(_list(key, value))
    )


def _widths(key: str, value: object) -> dict[int, float]:
    if not isinstance(value, Mapping):
        raise OptionError(f"{key}: expected a width for each group, not {value!r}")
    try:
        return {int(str(group)): _number(key, width) for group, width in value.items()}
    except ValueError as error:
        raise OptionError(f"{key}: groups are numbers, as 'pleas-fx groups' shows them") from error


def _calibration(key: str, value: object) -> str | tuple[str, ...]:
    return value if isinstance(value, str) else _texts(key, value)


READERS: dict[str, Any] = {
    "sources": _texts,
    "calibration": _calibration,
    **dict.fromkeys(COUNTS, _whole),
    "input": _shapes,
    **dict.fromkeys(("width", "flops", "params", "latency"), _number),
    "widths": _widths,
    "heads": _text,
    "classes": _classes,
    "method": _text,
    "seed": _whole,
    "out": _text,
}
