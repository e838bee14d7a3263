"""What a stored graph may name: functions, tensor methods, layers and literal values.

A graph read from a file is data. Whatever it names is looked up here and nowhere else, so no file
can make the loader import, call or build anything but tensor operations and torch.nn layers.
"""

from __future__ import annotations

import keyword
import math
import numbers
import operator
import re
from collections.abc import Callable, Mapping
from functools import cache
from types import BuiltinFunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from pleas_fx.errors import ArtefactError

OPERATORS = """add sub mul truediv floordiv mod pow matmul neg pos abs invert and_ or_ xor lshift
    rshift eq ne lt le gt ge not_ truth getitem iadd isub imul itruediv""".split()

ATTRIBUTES = frozenset(
    """shape dtype device ndim T mT H mH real imag is_cuda layout values indices""".split()
)
"""What ``getattr`` may read in a graph: of tensors, and of the results of sort, max and topk."""

_SPACES = ("fft", "linalg", "special")  # they hold functions of tensors only
_FILES = {"from_file", "frombuffer"}  # torch functions that reach beyond tensors
_CALLBACKS = {"apply_", "map_", "map2_", "register_hook", "register_post_accumulate_grad_hook"}
_NOT_LAYERS = {"Module", "Container", "DataParallel"}

_LITERALS: tuple[tuple[str, type], ...] = (
    ("dtype", torch.dtype),
    ("layout", torch.layout),
    ("memory_format", torch.memory_format),
)


# -- functions, methods, layers ------------------------------------------------------------------


@cache
def _functions() -> dict[str, Callable[..., Any]]:
    """Every function a graph may call, by its public name."""
    found: dict[str, Callable[..., Any]] = {"getattr": getattr}
    for name in OPERATORS:
        found[f"operator.{name}"] = getattr(operator, name)
    names = {*dir(torch._C._VariableFunctions), *torch.functional.__all__} - _FILES
    for name in sorted(n for n in names if not n.startswith("_")):
        if callable(getattr(torch, name, None)):
            found[f"torch.{name}"] = getattr(torch, name)
    for space in _SPACES:
        for name, value in sorted(vars(getattr(torch, space)).items()):
            if isinstance(value, BuiltinFunctionType) and not name.startswith("_"):
                found[f"torch.{space}.{name}"] = value
    for name, value in sorted(vars(F).items()):
        home = getattr(value, "__module__", "")
        ours = home in ("torch", "torch.nn.functional") or str(home).startswith("torch._C")
        if ours and callable(value) and not isinstance(value, type) and not name.startswith("_"):
            found[f"torch.nn.functional.{name}"] = value
    return found


@cache
def _names() -> dict[int, str]:
    """The reverse: the first public name of every function, by identity."""
    names: dict[int, str] = {}
    for name, function in _functions().items():
        names.setdefault(id(function), name)
    return names


def function_name(function: object) -> str:
    """The public name under which a graph stores a function."""
    name = _names().get(id(function))
    if name is None and isinstance(function, torch._ops.OpOverload):
        name = f"torch.ops.{function!s}"
    if name is None or _find(name) is not function:
        shown = getattr(function, "__qualname__", repr(function))
        home = getattr(function, "__module__", None)
        raise ArtefactError(
            f"the network calls {home + '.' if home else ''}{shown}, which an artefact can't hold;"
            " only functions of torch, torch.nn.functional and operator can be stored"
        )
    return name


def function(name: object) -> Callable[..., Any]:
    """The function of a public name."""
    found = _find(name)
    if found is None:
        raise ArtefactError(f"calls {name!r}, which isn't an allowed function")
    return found


def _find(name: object) -> Callable[..., Any] | None:
    if not isinstance(name, str):
        return None
    overload = re.fullmatch(r"torch\.ops\.aten\.([a-z_0-9]+)\.(\w+)", name)
    if overload is None:
        return _functions().get(name)
    packet = getattr(torch.ops.aten, overload[1], None)
    found = getattr(packet, overload[2], None)
    if not isinstance(found, torch._ops.OpOverload) or not _on_tensors(found):
        return None
    return found


def _on_tensors(overload: Any) -> bool:
    """Whether an operator takes tensors and numbers: neither files nor anything printed."""
    texts = [a for a in overload._schema.arguments if "str" in str(a.type).lower()]
    harmless = {"padding", "rounding_mode", "approximate", "reduce", "mode", "ord", "equation"}
    return all(a.name in harmless for a in texts) and bool(overload._schema.returns)


def method(name: object) -> str:
    """The name of a tensor method that a graph may call."""
    known = isinstance(name, str) and not name.startswith("_") and name not in _CALLBACKS
    if not known or not callable(getattr(Tensor, str(name), None)):
        raise ArtefactError(f"calls the method {name!r}, which isn't an allowed tensor method")
    return str(name)


def layer_name(module: nn.Module) -> str:
    """The name of a layer's class, which must be one of torch.nn's own."""
    kind = type(module)
    if _layers().get(kind.__name__) is not kind:
        raise ArtefactError(
            f"the network contains {kind.__module__}.{kind.__qualname__}, which an artefact can't"
            " hold; only classes of torch.nn can be stored"
        )
    return kind.__name__


def layer(name: object) -> type[nn.Module]:
    """The torch.nn class of a name."""
    found = _layers().get(name) if isinstance(name, str) else None
    if found is None:
        raise ArtefactError(f"contains a {name!r}, which isn't a class of torch.nn")
    return found


@cache
def _layers() -> dict[str, type[nn.Module]]:
    return {
        name: kind
        for name, kind in vars(nn).items()
        if isinstance(kind, type) and issubclass(kind, nn.Module)
        if name not in _NOT_LAYERS and not name.startswith("Lazy")
    }


# -- names that end up in generated source -------------------------------------------------------


def identifier(name: object) -> str:
    """A plain Python name: torch.fx writes names into source, where anything else would be code."""
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
        raise ArtefactError(f"{name!r} isn't a plain name")
    return name


def path(name: object) -> str:
    """A dotted path of submodules or of a tensor: nothing that ends a quoted string."""
    part = r"[^\x00-\x1f\x7f\"\\.]+"
    if not isinstance(name, str) or not re.fullmatch(rf"{part}(\.{part})*", name):
        raise ArtefactError(f"{name!r} isn't a path of names")
    return name


# -- values ---------------------------------------------------------------------------------------


def encode(value: Any) -> Any:
    """A literal argument, possibly with nodes in it, as JSON."""
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else {"float": str(float(value))}
    if isinstance(value, tuple):
        return {"tuple": [encode(v) for v in value]}
    if isinstance(value, list):
        return [encode(v) for v in value]
    if isinstance(value, Mapping):
        return {"dict": [[encode(k), encode(v)] for k, v in value.items()]}
    if isinstance(value, slice):
        return {"slice": [encode(v) for v in (value.start, value.stop, value.step)]}
    if value is ...:
        return {"ellipsis": True}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    for tag, kind in _LITERALS:
        if isinstance(value, kind):
            return {tag: str(value).removeprefix("torch.")}
    raise ArtefactError(f"an artefact can't hold an argument of type {type(value).__name__}")


def decode(stored: Any, nodes: Mapping[str, Any]) -> Any:
    """The value that :func:`encode` stored; ``nodes`` are those defined before."""
    if isinstance(stored, list):
        return [decode(v, nodes) for v in stored]
    if not isinstance(stored, dict):
        return stored
    if len(stored) != 1:
        raise ArtefactError(f"{stored!r} isn't a value")
    tag, content = next(iter(stored.items()))
    if tag == "node" and content in nodes:
        return nodes[content]
    if tag == "dict":
        return {decode(k, nodes): decode(v, nodes) for k, v in content}
    if tag == "tuple":
        return tuple(decode(v, nodes) for v in content)
    if tag == "slice":
        return slice(*(decode(v, nodes) for v in content))
    return _literal(tag, content)


def _literal(tag: str, content: Any) -> Any:
    if tag == "ellipsis":
        return ...
    if tag == "float":
        return float(content)
    if tag == "device":
        return torch.device(content)
    for known, kind in _LITERALS:
        value = getattr(torch, str(content), None)
        if tag == known and isinstance(value, kind):
            return value
    raise ArtefactError(f"{ {tag: content}!r} isn't a value")
