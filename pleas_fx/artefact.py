"""The artefact folder: written whole or not at all, and read without running code from it."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import yaml
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from passes.export import Parity, export_onnx
from pleas_fx.errors import ArtefactError, ExportError
from pleas_fx.graph_json import Stored, decode_graph, encode_graph, take_apart
from pleas_fx.model_source import model_source
from pleas_fx.report import render
from pleas_fx.report.tables import certificate_table, plain, result_table, to_json
from pleas_fx.report.view import source_names
from pleas_fx.result import MergeResult

GRAPH, WEIGHTS, SOURCE, ONNX = "graph.json", "model.safetensors", "model.py", "merged.onnx"
RECIPE, CERTIFICATE, REPORT, PAGE = "recipe.yaml", "certificate.json", "report.json", "report.html"

FILES = (ONNX, WEIGHTS, SOURCE, GRAPH, RECIPE, CERTIFICATE, REPORT, PAGE)
REPLACED = {*FILES, f"{ONNX}.data", "__pycache__"}  # all else in a folder is its owner's


def save(result: MergeResult, folder: Path) -> Path:
    """Write the artefact of ``result`` to ``folder`` and prove that it computes the same.

    An artefact that is there already is replaced once the new one is complete; files in it that
    aren't part of an artefact stay.

    Raises:
        ArtefactError: the folder holds something else, the network can't be stored, or the disk
            fails. What was there before is then unchanged.
        ExportError: the ONNX file would disagree with the network.
    """
    target = Path(os.path.realpath(folder))
    _check_target(target, folder)
    with _disk_errors(folder):
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.parent / f".{target.name}.{secrets.token_hex(4)}.new"
        try:
            fresh.mkdir()
            _write(result, fresh)
            _keep_foreign(target, fresh)
            _sync(fresh)
            _replace(fresh, target)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return Path(folder)


def load(folder: str | Path) -> fx.GraphModule:
    """The network of an artefact folder, on the CPU and in eval mode.

    Reads graph.json and model.safetensors only; nothing in the folder is executed or unpickled.

    Raises:
        ArtefactError: a file is missing, damaged, or not what was written; names the file.
    """
    graph, weights = Path(folder) / GRAPH, Path(folder) / WEIGHTS
    data = _read_graph(graph)
    raw = _read(weights)
    digest = data.pop("weights_sha256", None)
    if hashlib.sha256(raw).hexdigest() != digest:
        raise ArtefactError(f"{weights} isn't the file that {GRAPH} was written with")
    try:
        tensors = safetensors.torch.load(raw)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise ArtefactError(f"{weights} isn't a safetensors file: {error}") from error
    return _decoded(data, tensors, graph)


def is_artefact(folder: str | Path) -> bool:
    """Whether a folder looks like one that :func:`save` wrote."""
    return (Path(folder) / GRAPH).is_file() and (Path(folder) / WEIGHTS).is_file()


# -- reading --------------------------------------------------------------------------------------


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ArtefactError(f"{path} is missing: {path.parent} isn't an artefact folder") from error
    except OSError as error:
        raise ArtefactError(f"{path} can't be read: {error.strerror or error}") from error


def _read_graph(path: Path) -> dict[str, Any]:
    raw = _read(path)
    try:
        data = json.loads(raw)
        if not isinstance(data, dict):
            raise ArtefactError(f"{path} isn't a graph")
        if data.pop("sha256", None) != _digest(data):
            raise ArtefactError(f"{path} was changed after it was written")
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"{path} isn't JSON: {error}") from error
    return data


def _decoded(data: dict[str, Any], tensors: Mapping[str, Tensor], path: Path) -> fx.GraphModule:
    try:
        return decode_graph(data, tensors)
    except ArtefactError as error:
        raise ArtefactError(f"{path} {' '.join(str(error).split())}") from error


def _digest(data: Mapping[str, Any]) -> str:
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


# -- writing --------------------------------------------------------------------------------------


def _write(result: MergeResult, folder: Path) -> None:
    network = _on_cpu(result.model)
    inputs = tuple(x.detach().cpu() for x in result.inputs)
    stored = take_apart(network)
    raw = safetensors.torch.save(dict(stored.tensors))
    (folder / WEIGHTS).write_bytes(raw)
    data = {**encode_graph(network, stored), "weights_sha256": hashlib.sha256(raw).hexdigest()}
    (folder / GRAPH).write_text(to_json({**data, "sha256": _digest(data)}), encoding="utf-8")
    source = model_source(network, stored, _title(result), ", ".join(result.output_names))
    (folder / SOURCE).write_text(source, encoding="utf-8")
    _verify(network, stored, inputs, folder)
    parity = _export(network, inputs, result, folder / ONNX)
    recipe = yaml.safe_dump(plain(dict(result.recipe)), sort_keys=False, allow_unicode=True)
    texts = {
        RECIPE: f"# Written by pleas_fx; `pleas-fx merge {RECIPE}` runs it again.\n{recipe}",
        CERTIFICATE: to_json(certificate_table(result.symmetry)),
        REPORT: to_json(result_table(result, parity)),
        PAGE: render(result, parity),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def _title(result: MergeResult) -> str:
    return f"Merged from {' and '.join(source_names(result))}."


def _on_cpu(model: fx.GraphModule) -> fx.GraphModule:
    """A copy with tensors in the plain memory order in which files store them.

    Strides choose kernels, also those of dimensions of size one, which `contiguous` leaves alone.
    """
    network = copy.deepcopy(model).cpu().eval()
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
    return network


def _export(
    network: fx.GraphModule, inputs: tuple[Tensor, ...], result: MergeResult, path: Path
) -> Parity:
    try:
        return export_onnx(network, inputs, path, output_names=result.output_names)
    except ExportError as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from error
        raise


def _verify(
    network: fx.GraphModule, stored: Stored, inputs: tuple[Tensor, ...], folder: Path
) -> None:
    """What both ways of loading give computes exactly what the network does."""
    expected = _run(network, inputs)
    names = {entry.name for entry in stored.entries}
    for name, loader in ((GRAPH, load), (SOURCE, _execute)):
        try:
            again = loader(folder)
            found = _run(again, inputs)
        except (ArtefactError, RuntimeError, KeyError, ValueError, NameError, SyntaxError) as error:
            raise ArtefactError(f"the network can't be stored in {name}: {error}") from error
        same = len(found) == len(expected) and all(map(_equal, found, expected))
        if not same or not names >= set(again.state_dict()) >= set(network.state_dict()):
            raise ArtefactError(f"the network read back from {name} computes something else")


def _execute(folder: Path) -> nn.Module:
    """The network of a model.py that was just written."""
    path = folder / SOURCE
    namespace: dict[str, Any] = {"__name__": "model", "__file__": str(path)}
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), namespace)
    network: nn.Module = namespace["load"]()
    return network


def _run(network: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    with torch.no_grad():
        return [t for t in tree_leaves(network(*inputs)) if isinstance(t, Tensor)]


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


# -- folders --------------------------------------------------------------------------------------


def _check_target(target: Path, shown: Path) -> None:
    """Only nothing, an empty folder or an artefact may be replaced."""
    if not target.exists():
        return
    if not target.is_dir():
        raise ArtefactError(f"{shown} is a file, not a folder")
    if not is_artefact(target) and any(target.iterdir()):
        raise ArtefactError(
            f"{shown} is a folder with other files in it; choose a new or empty folder"
        )


def _keep_foreign(target: Path, fresh: Path) -> None:
    """Copy what isn't part of an artefact over from the folder that will be replaced."""
    for entry in target.iterdir() if target.exists() else ():
        if entry.name in REPLACED:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, fresh / entry.name, symlinks=True)
        else:
            shutil.copy2(entry, fresh / entry.name, follow_symlinks=False)


def _sync(folder: Path) -> None:
    """Bring the files to the disk before the folder gets its name."""
    for name in FILES:
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())


def _replace(fresh: Path, target: Path) -> None:
    """Give ``fresh`` the name ``target``; on any interruption the old folder has it again."""
    if not target.exists():
        fresh.rename(target)
        return
    old = fresh.with_suffix(".old")
    try:
        target.rename(old)
        fresh.rename(target)
    finally:
        if not target.exists():
            old.rename(target)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ArtefactError(f"can't write {folder}: {error.strerror or error}") from error
