"""Read ``.pt2`` programs as networks that can be traced, without unpickling Python objects."""

from __future__ import annotations

import json
import os
import re
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from pleas_fx.checkpoints import one_line
from pleas_fx.errors import SourceError

FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
TENSOR_PREFIX = "tensor_"  # how torch.export names constants that are tensors
# Sizes are written like Add(Symbol('s0', integer=True), Integer(1)), and sympy evaluates them as
# Python. Symbols and names with a capital (sympy's own) can do no harm; nothing else gets there.
NAME = re.compile(r"[A-Za-z_]\w*")
PLAIN_NAME = re.compile(r"(?:[suz]\w{0,3}\d+|int_oo|oo|[A-Z]\w*)\Z")
PLAIN_EXPRESSION = re.compile(r"[\w\s+\-*/%(),.<>=!&|~]*\Z")
QUOTED = re.compile(r"'(\w+)'")
KEYWORD = re.compile(r"\b[a-z_]+=(?!=)")
ATTRIBUTE = re.compile(r"\.\s*[A-Za-z_]")

_lock = threading.Lock()


def load_program(path: Path) -> nn.Module:
    """The network in a ``.pt2`` file that ``torch.export.save`` wrote, in eval mode.

    Raises:
        SourceError: the file is missing or broken, or holds Python objects besides tensors.
    """
    if not path.is_file():
        raise SourceError(f"{path}: no such file")
    try:
        _check_archive(path)
        with _tensors_only():
            program = torch.export.load(path)
        return _traceable(program)
    except SourceError:
        raise
    except Exception as error:
        raise SourceError(f"{path}: can't be read as a .pt2 program ({one_line(error)})") from error


def _check_archive(path: Path) -> None:
    """Refuse what ``torch.export.load`` would unpickle or evaluate as Python."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if not name.endswith(".json"):
                continue
            for key, value in _entries(json.loads(archive.read(name))):
                if key == "expr_str" and not _plain(str(value)):
                    raise SourceError(f"{path}: a size in {name} is no plain expression")
                constant = name.endswith("constants_config.json") and key == "path_name"
                if constant and not str(value).startswith(TENSOR_PREFIX):
                    raise SourceError(
                        f"{path}: constant {value!r} is a Python object and was not loaded"
                    )


def _entries(value: object) -> Iterator[tuple[str, object]]:
    """Every key and value of nested JSON."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, inner
            yield from _entries(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _entries(inner)


def _plain(expression: str) -> bool:
    bare = KEYWORD.sub("", QUOTED.sub(r"\1", expression))
    return (
        PLAIN_EXPRESSION.match(bare) is not None
        and ATTRIBUTE.search(bare) is None
        and all(PLAIN_NAME.match(name) for name in NAME.findall(bare))
    )


@contextmanager
def _tensors_only() -> Iterator[None]:
    """``torch.export.load`` asks for whole pickles; this makes every ``torch.load`` refuse them."""
    with _lock:
        before = os.environ.get(FORCE)
        os.environ[FORCE] = "1"
        try:
            yield
        finally:
            if before is None:
                del os.environ[FORCE]
            else:
                os.environ[FORCE] = before


def _traceable(program: ExportedProgram) -> nn.Module:
    """An ordinary module: no in-place operators, no checks of the shapes it was exported with."""
    if any(_mutates(node) for node in program.graph.nodes):
        program = program.run_decompositions({})
    module = program.module()
    assert isinstance(module, fx.GraphModule)
    for node in list(module.graph.nodes):
        if node.op == "call_module" and node.target == "_guards_fn":
            module.graph.erase_node(node)
    # A new GraphModule: torch.export forbids eval() on its own.
    return fx.GraphModule(module, module.graph).eval()


def _mutates(node: fx.Node) -> bool:
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable
