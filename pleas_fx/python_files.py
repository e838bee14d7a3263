"""Import a user's Python file and take one thing from it; whatever it raises is one clear error."""

from __future__ import annotations

import difflib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from torch import nn

from pleas_fx.checkpoints import one_line
from pleas_fx.errors import PleasError, SourceError


def load_attribute(spec: str, *, call: bool = True) -> object:
    """What ``file.py:name`` stands for; a function or class is called without arguments."""
    file, separator, name = spec.rpartition(":")
    path = Path(file)
    if not separator or path.suffix != ".py" or not name.isidentifier():
        raise SourceError(f"{spec}: expected file.py:name")
    if not path.is_file():
        raise SourceError(f"{path}: no such file")
    with _import_paths(path.resolve().parent, Path.cwd()):
        module = _imported(path)
        if not hasattr(module, name):
            known = [n for n in vars(module) if not n.startswith("_")]
            raise SourceError(f"{path}: has no {name!r}{suggestion(name, known)}")
        value = getattr(module, name)
        if not call or isinstance(value, nn.Module) or not callable(value):
            return value
        try:
            return value()
        except PleasError:
            raise
        except (Exception, SystemExit) as error:
            raise SourceError(f"{spec}: calling it failed: {one_line(error)}") from error


def suggestion(name: str, known: Sequence[str]) -> str:
    """``; did you mean …?`` with the closest known names, or nothing."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"; did you mean {', '.join(close)}?" if close else ""


def _imported(path: Path) -> ModuleType:
    """A fresh module made from a file, whatever else has its name."""
    name = f"_pleas_fx_source_{len(sys.modules)}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise SourceError(f"{path}: can't be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise SourceError(f"{path}: importing it failed: {one_line(error)}") from error
    return module


@contextmanager
def _import_paths(*folders: Path) -> Iterator[None]:
    """Let a file import its neighbours and what lies in the current folder."""
    added = [str(folder) for folder in folders if str(folder) not in sys.path]
    sys.path.extend(added)
    try:
        yield
    finally:
        for folder in added:
            if folder in sys.path:
                sys.path.remove(folder)
