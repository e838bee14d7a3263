"""Describe a torch.nn layer by the arguments that construct it again."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from pleas_fx.allowed import layer, layer_name
from pleas_fx.errors import ArtefactError

_SKIPPED = {"self", "device", "dtype"}
_BAD_ARGUMENTS = (
    TypeError,
    ValueError,
    RuntimeError,
    AssertionError,
    AttributeError,
    ArithmeticError,
    LookupError,
)  # what torch.nn raises for arguments it can't take


@dataclass(frozen=True, slots=True)
class Constructor:
    """A torch.nn class and the arguments for it: positional ones, then by name."""

    kind: str
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]

    def build(self) -> nn.Module:
        """The layer, in eval mode and without storage: its tensors come from a file."""
        try:
            with torch.device("meta"):
                return layer(self.kind)(*self.args, **dict(self.kwargs)).eval()
        except _BAD_ARGUMENTS as error:
            raise ArtefactError(f"{self} can't be built: {' '.join(str(error).split())}") from error

    def __str__(self) -> str:
        shown = [repr(a) for a in self.args] + [f"{k}={v!r}" for k, v in self.kwargs]
        return f"nn.{self.kind}({', '.join(shown)})"


def constructor(module: nn.Module, path: str) -> Constructor:
    """How to construct a layer of the same kind and shapes.

    Raises:
        ArtefactError: the class isn't torch.nn's, or its arguments can't be read off the layer.
    """
    try:
        found = _read_off(module)
        again = found.build()
    except ArtefactError as error:
        raise ArtefactError(f"{path}: {error}") from error
    if not _alike(again, module):
        raise ArtefactError(
            f"{path}: {found} doesn't give this nn.{found.kind} back, so an artefact can't hold it"
        )
    return found


def _read_off(module: nn.Module) -> Constructor:
    name = layer_name(module)
    args: list[Any] = []
    kwargs: list[tuple[str, Any]] = []
    for parameter in _arguments(module):
        if parameter.name in _SKIPPED or parameter.name.startswith("_"):
            continue
        if not _readable(module, parameter):
            continue
        value = _value(module, parameter.name)
        if parameter.default is parameter.empty and not kwargs:
            args.append(value)
        elif not _same(value, parameter.default):
            kwargs.append((parameter.name, value))
    return Constructor(name, tuple(args), tuple(kwargs))


def _arguments(module: nn.Module) -> list[inspect.Parameter]:
    """What the class takes: recurrent layers hand it to their base, but name its mode."""
    if not isinstance(module, nn.RNNBase):
        return list(inspect.signature(type(module)).parameters.values())
    found = dict(inspect.signature(nn.RNNBase).parameters)
    found["mode"] = inspect.Parameter(
        "nonlinearity", inspect.Parameter.KEYWORD_ONLY, default="tanh"
    )
    return sorted(found.values(), key=lambda parameter: parameter.kind)


def _readable(module: nn.Module, parameter: inspect.Parameter) -> bool:
    if parameter.name == "bias" and getattr(module, "affine", True) is False:
        return False  # follows from affine; older versions of torch have no such argument
    variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    return not variadic and hasattr(module, parameter.name)


def _value(module: nn.Module, name: str) -> Any:
    value = getattr(module, name)
    if name == "bias":
        return value is not None and value is not False
    if isinstance(module, _ConvNd) and isinstance(value, tuple) and len(set(value)) == 1:
        return value[0]  # 3 for (3, 3)
    return value


def _same(value: Any, default: Any) -> bool:
    return type(value) is type(default) and bool(value == default)


def _alike(again: nn.Module, module: nn.Module) -> bool:
    """The same attributes, and tensors of the same names and shapes."""
    shapes = [{k: tuple(t.shape) for k, t in m.state_dict().items()} for m in (again, module)]
    configured = _attributes(again).items() <= _attributes(module).items()
    return configured and repr(again) == repr(module) and shapes[0] == shapes[1]


def _attributes(module: nn.Module) -> dict[str, Any]:
    """What configures a layer: its public attributes, as text."""
    return {
        key: repr(value)
        for key, value in vars(module).items()
        if not key.startswith("_") and key != "training"
    }
