"""Models from a specification: a model zoo, a Python file, an artefact folder or a program."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from pleas_fx.checkpoints import SUFFIXES, check_finite, load_weights, one_line
from pleas_fx.datasets import load_calibration, load_labels
from pleas_fx.errors import SourceError
from pleas_fx.python_files import load_attribute, suggestion

__all__ = ["load_calibration", "load_labels", "load_model"]

FORMS = (
    "torchvision:NAME, timm:NAME or file.py:factory (each with @weights.safetensors or "
    "@weights.pt), a folder that save wrote, or a .pt2 program"
)
WEIGHTS = re.compile(r"(?P<model>.+?:[^@:/\\]+)@(?P<weights>.+)\Z")  # folders may hold an @


def load_model(spec: str) -> nn.Module:
    """The network a specification names, in eval mode. Never downloads anything.

    Args:
        spec: ``torchvision:resnet50``, ``timm:resnet50.a1_in1k`` or ``file.py:factory``, each
            with random weights or with ``@weights.safetensors`` or ``@weights.pt``; a folder that
            ``result.save`` wrote; or a ``.pt2`` program.

    Raises:
        SourceError: saying which file, key or name is wrong, and what would be right.
    """
    path = Path(spec)
    if spec and path.is_dir():
        model = _artefact(path)
    elif path.suffix == ".pt2":
        from pleas_fx.programs import load_program

        model = load_program(path)
    else:
        model = _built(spec)
    check_finite(model, spec)
    return model


def _built(spec: str) -> nn.Module:
    found = WEIGHTS.match(spec)
    name, weights = (found["model"], Path(found["weights"])) if found else (spec, None)
    if weights is not None:
        _check_weights(weights)  # before minutes of building a network
    kind, separator, rest = name.partition(":")
    if kind in ("torchvision", "timm") and separator and "@" not in rest:
        model = _torchvision(rest) if kind == "torchvision" else _timm(rest)
    elif ".py:" in name:
        model = _from_file(name)
    else:
        raise SourceError(_unknown(spec))
    if weights is not None:
        load_weights(model, weights)
    return model.eval()


def _check_weights(path: Path) -> None:
    if path.suffix not in SUFFIXES:
        raise SourceError(f"{path}: expected weights in a file that ends in {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise SourceError(f"{path}: no such file")


def _unknown(spec: str) -> str:
    path = Path(spec)
    if path.suffix in SUFFIXES:
        return f"{spec}: weights alone are no network, give it as file.py:factory@{path.name}"
    if path.suffix == ".py":
        return f"{spec}: which function builds the network? Give it as {path.name}:factory"
    if spec.endswith("@"):
        return f"{spec}: expected weights after @, in a file that ends in {', '.join(SUFFIXES)}"
    if "/" in spec and not path.exists():
        return f"{spec}: no such file or folder"
    return f"{spec}: not a model; expected {FORMS}"


def _artefact(folder: Path) -> nn.Module:
    from pleas_fx.artefact import load

    model: nn.Module = load(folder)
    return model


def _from_file(spec: str) -> nn.Module:
    model = load_attribute(spec)
    if not isinstance(model, nn.Module):
        raise SourceError(f"{spec}: returned {type(model).__name__}, not a torch.nn.Module")
    return model


def _torchvision(name: str) -> nn.Module:
    models = _zoo("torchvision").models
    known: Sequence[str] = models.list_models()
    if name not in known:
        raise SourceError(f"torchvision has no model {name!r}{suggestion(name, known)}")
    builder = models.get_model_builder(name)
    # Detection and segmentation builders download a backbone unless they are told not to.
    backbone = "weights_backbone" in inspect.signature(builder).parameters
    options = {"weights": None, **({"weights_backbone": None} if backbone else {})}
    try:
        model: nn.Module = builder(**options)
    except Exception as error:
        raise SourceError(f"torchvision:{name}: building it failed: {one_line(error)}") from error
    return model


def _timm(name: str) -> nn.Module:
    timm = _zoo("timm")
    if not timm.is_model(name):  # names that timm would fetch, hf-hub:…, aren't in its list
        raise SourceError(f"timm has no model {name!r}{suggestion(name, timm.list_models())}")
    try:
        model: nn.Module = timm.create_model(name, pretrained=False)
    except Exception as error:
        raise SourceError(f"timm:{name}: building it failed: {one_line(error)}") from error
    return model


def _zoo(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise SourceError(
            f"{package} isn't installed: install the extra, pip install 'pleas-fx[zoo]'"
        ) from error
