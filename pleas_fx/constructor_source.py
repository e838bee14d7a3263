"""The constructor of a stored network, as a person would write it: containers in containers."""

from __future__ import annotations

from dataclasses import dataclass, field
from keyword import iskeyword
from typing import Literal

import torch
from torch import nn

from pleas_fx.graph_json import Entry, Stored

Kind = Literal["list", "dict", "plain"]

INDENT = "    "
WIDTH = 100
BRACKETS: dict[Kind, tuple[str, str]] = {
    "list": ("nn.ModuleList([", "])"),
    "dict": ("nn.ModuleDict({", "})"),
    "plain": ("_module({", "})"),
}
HELPER = '''

def _module(parts):
    """A module with parts whose names nn.ModuleDict keeps for itself."""
    module = nn.Module()
    for name, part in parts.items():
        module.add_module(name, part)
    return module
'''


@dataclass(slots=True)
class Part:
    """A layer, or a container of parts and tensors."""

    layer: str = ""  # the source of its constructor
    parts: dict[str, Part] = field(default_factory=dict)
    tensors: list[str] = field(default_factory=list)

    @property
    def kind(self) -> Kind:
        """The torch.nn container that holds such parts; a plain module where none can."""
        names = [*self.parts, *self.tensors]
        if self.parts and names == [str(k) for k in range(len(names))]:
            return "list"
        return "plain" if any(hasattr(nn.ModuleDict, name) for name in names) else "dict"


class Parts:
    """All parts of a network, by path: how they are made and how they are reached."""

    def __init__(self, stored: Stored) -> None:
        self.stored = stored
        self.root = Part()
        for path, layer in stored.layers.items():
            self._at(path).layer = str(layer)
        inside = tuple(f"{path}." for path in stored.layers)
        self.bare = [e for e in stored.entries if not e.name.startswith(inside)]
        for entry in self.bare:
            owner, _, leaf = entry.name.rpartition(".")
            self._at(owner).tensors.append(leaf)

    def _at(self, path: str) -> Part:
        part = self.root
        for name in path.split(".") if path else ():
            part = part.parts.setdefault(name, Part())
        return part

    def access(self, path: str) -> str:
        """The expression for a submodule or tensor: ``self.stages[0].downsample["0_A"]``."""
        part: Part | None = self.root
        source = "self"
        for name in path.split(".") if path else ():
            kind = "plain" if part is None or part is self.root or part.layer else part.kind
            child = None if part is None else part.parts.get(name)
            if kind == "list" and child is not None:
                source += f"[{name}]"
            elif name.isidentifier() and not iskeyword(name):
                source += f".{name}"
            elif kind == "dict" and child is not None:
                source += f"[{quoted(name)}]"
            else:
                source = f"getattr({source}, {quoted(name)})"
            part = child
        return source

    def constructor(self) -> str:
        """The source of ``__init__``."""
        lines = ["def __init__(self):", f"{INDENT}super().__init__()"]
        for name, part in self.root.parts.items():
            plain = name.isidentifier() and not iskeyword(name)
            made = _made(part)
            made[0] = (f"self.{name} = " if plain else f"self.add_module({quoted(name)}, ") + made[
                0
            ]
            made[-1] += "" if plain else ")"
            lines += [INDENT + row for row in made]
        lines += [INDENT + row for entry in self.bare for row in self._tensor(entry)]
        return "".join(f"{INDENT}{row}\n" for line in lines for row in _broken(line))

    def _tensor(self, entry: Entry) -> list[str]:
        path, _, leaf = entry.name.rpartition(".")
        owner, tensor = self.access(path), self.stored.tensors[entry.stored]
        shape = ", ".join(map(str, tensor.shape)) if tensor.dim() else "()"
        dtype = "" if tensor.dtype is torch.float32 else f", dtype={tensor.dtype}"
        empty = f"torch.empty({shape}{dtype})"
        if entry.kind != "parameter":
            return [f"{owner}.register_buffer({quoted(leaf)}, {empty})"]
        value = f"nn.Parameter({empty}{'' if entry.trainable else ', requires_grad=False'})"
        if leaf.isidentifier() and not iskeyword(leaf):
            return [f"{owner}.{leaf} = {value}"]
        return [f"{owner}.register_parameter({quoted(leaf)}, {value})"]


def _broken(line: str) -> list[str]:
    """The line, or three where it is too long: a call's arguments are on the one between."""
    if len(INDENT + line) <= WIDTH:
        return [line]
    start, _, rest = line.partition("(")
    arguments, _, end = rest.rpartition(")")
    indent = line[: len(line) - len(line.lstrip())]
    return [f"{start}(", indent + INDENT + arguments, f"{indent}){end}"]


def _made(part: Part) -> list[str]:
    """The lines of the expression that makes a part."""
    if part.layer:
        return [part.layer]
    if not part.parts:
        return ["nn.Module()"]
    start, end = BRACKETS[part.kind]
    rows = [start]
    for name, child in part.parts.items():
        made = _made(child)
        made[0] = made[0] if part.kind == "list" else f"{quoted(name)}: {made[0]}"
        made[-1] += ","
        rows += [INDENT + row for row in made]
    return [*rows, end]


def quoted(name: str) -> str:
    """A name as a string in source; names hold no quotes or backslashes, see `allowed.path`."""
    return f'"{name}"'
