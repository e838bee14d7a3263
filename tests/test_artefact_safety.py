"""What can't be stored is refused by name, and nothing in an artefact can run when it is read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from pleas_fx import artefact
from pleas_fx.artefact import GRAPH, SOURCE, WEIGHTS, load, save
from pleas_fx.errors import ArtefactError
from pleas_fx.graph_json import decode_graph, encode_graph
from tests.networks import noise
from tests.results import result, without_onnx

Json = dict[str, Any]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests need no real ONNX file."""
    without_onnx(monkeypatch)


@pytest.fixture
def folder(quick: None, tmp_path: Path) -> Path:
    """A saved artefact."""
    return save(result(), tmp_path / "out")


def sealed(data: Json) -> str:
    """A graph with the digest that belongs to it: what someone who knows the format writes."""
    data.pop("sha256", None)
    return json.dumps({**data, "sha256": artefact._digest(data)})


def edited(folder: Path, change: Callable[[Json], object]) -> None:
    """Change the graph of an artefact and seal it again."""
    data = json.loads((folder / GRAPH).read_text())
    change(data)
    (folder / GRAPH).write_text(sealed(data))


# -- what can't be stored ------------------------------------------------------------------------


class Strange(nn.Module):
    """A layer that isn't torch.nn's."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2


class Widened(nn.Conv2d):
    """Not torch.nn's either, though it is one of its layers."""


def traced(layer: nn.Module) -> fx.GraphModule:
    """A graph that calls ``layer`` as a whole."""
    graph = fx.Graph()
    root = nn.Module()
    root.add_module("strange", layer)
    graph.output(graph.call_module("strange", (graph.placeholder("x"),)))
    return fx.GraphModule(root, graph)


def calling(function: Callable[..., Any]) -> fx.GraphModule:
    """A graph that calls ``function``."""
    graph = fx.Graph()
    graph.output(graph.call_function(function, (graph.placeholder("x"),)))
    return fx.GraphModule(nn.Module(), graph)


def doubled(x: Tensor) -> Tensor:
    """A function of this file."""
    return x + x


def inconsistent() -> nn.Module:
    """A layer whose attributes don't say what its weights are."""
    layer = nn.Conv2d(3, 4, 1)
    layer.weight = nn.Parameter(torch.zeros(5, 3, 1, 1))
    return layer


@pytest.mark.parametrize(
    ("module", "match"),
    [
        (traced(Strange()), r"strange: .*tests\.test_artefact_safety\.Strange"),
        (traced(Widened(3, 4, 1)), r"strange: .*tests\.test_artefact_safety\.Widened"),
        (traced(inconsistent()), r"strange: nn\.Conv2d\(3, 4, 1\) doesn't give"),
        (traced(nn.TransformerEncoderLayer(4, 1)), r"strange: nn\.\w+\(.*\) can't be built"),
        (calling(doubled), r"node doubled: .*tests\.test_artefact_safety\.doubled"),
        (calling(torch.load), r"torch\.serialization\.load"),
        (calling(np.tanh), r"tanh"),
    ],
    ids=["own layer", "subclass", "inconsistent", "unreadable", "own function", "load", "numpy"],
)
def test_what_can_not_be_stored_is_named(
    module: fx.GraphModule, match: str, quick: None, tmp_path: Path
) -> None:
    """Layers and functions outside torch are refused by name; nothing is left behind."""
    merged = result(module, inputs=noise((2, 3, 4, 4)))
    with pytest.raises(ArtefactError, match=match) as caught:
        save(merged, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_graph_that_would_load_differently_is_not_saved(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control of the check after writing: a wrong graph is noticed."""

    def wrong(module: fx.GraphModule, stored: Any) -> Json:
        data = encode_graph(module, stored)
        next(n for n in data["nodes"] if n["target"] == "torch.relu")["target"] = "torch.tanh"
        return data

    monkeypatch.setattr(artefact, "encode_graph", wrong)
    with pytest.raises(ArtefactError, match=r"graph\.json computes something else"):
        save(result(), tmp_path / "out")


def test_source_that_would_load_differently_is_not_saved(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for model.py."""
    real = artefact.model_source
    wrong = lambda *args: real(*args).replace("torch.relu", "torch.tanh")  # noqa: E731
    monkeypatch.setattr(artefact, "model_source", wrong)
    with pytest.raises(ArtefactError, match=r"model\.py computes something else"):
        save(result(), tmp_path / "out")


# -- reading what isn't an artefact --------------------------------------------------------------


@pytest.mark.parametrize("name", [GRAPH, WEIGHTS])
@pytest.mark.parametrize(
    "damage",
    [
        lambda f: f.unlink(),
        lambda f: f.write_bytes(b""),
        lambda f: f.write_bytes(f.read_bytes()[:-7]),
        lambda f: f.write_bytes(bytes(b ^ 1 for b in f.read_bytes())),
        lambda f: f.write_bytes(b"[" * 100_000),
        lambda f: f.write_bytes(f.read_bytes().replace(b"left", b"Left", 1)),
        lambda f: f.write_bytes(b'{"nodes": NaN}'),
        lambda f: (f.unlink(), f.mkdir()),
    ],
    ids=["missing", "empty", "truncated", "garbled", "deep", "edited", "nan", "a folder"],
)
def test_damaged_files_are_named(name: str, damage: Callable[[Path], object], folder: Path) -> None:
    """Whatever happened to a file, the error is one line with its name."""
    damage(folder / name)
    with pytest.raises(ArtefactError, match=name) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_no_artefact_is_an_error(tmp_path: Path) -> None:
    """Nothing there, or something else."""
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ArtefactError, match="isn't an artefact folder"):
            load(path)


def test_files_a_network_does_not_need_are_not_read(folder: Path) -> None:
    """model.py is for people: loading neither runs nor needs it."""
    (folder / SOURCE).write_text("raise SystemExit('executed')")
    (folder / "merged.onnx").unlink()
    load(folder)


RUN = "__import__('os').mkdir('pwned')"

ATTACKS: dict[str, Callable[[Json], object]] = {
    "function": lambda d: d["nodes"][1].update(op="call_function", target="os.system"),
    "torch.load": lambda d: d["nodes"][1].update(op="call_function", target="torch.load"),
    "from_file": lambda d: d["nodes"][1].update(op="call_function", target="torch.from_file"),
    "operator": lambda d: d["nodes"][1].update(op="call_function", target="operator.attrgetter"),
    "eval": lambda d: d["nodes"][1].update(op="call_function", target="builtins.eval"),
    "aten": lambda d: d["nodes"][1].update(
        op="call_function", target="torch.ops.aten.from_file.default"
    ),
    "method": lambda d: d["nodes"][1].update(op="call_method", target="__reduce__"),
    "method source": lambda d: d["nodes"][1].update(op="call_method", target=f"abs({RUN})"),
    "attribute": lambda d: d["nodes"][1].update(
        op="call_function", target="getattr", args=[{"node": "x"}, "__class__"]
    ),
    "hidden attribute": lambda d: d["nodes"][1].update(
        op="call_function", target="getattr", args=[{"node": "x"}], kwargs={"name": "__class__"}
    ),
    "class": lambda d: d["layers"][0].update({"class": "Module.__subclasses__"}),
    "other class": lambda d: d["layers"][0].update({"class": "DataParallel"}),
    "arguments": lambda d: d["layers"][0].update(args=[1, 2]),
    "huge layer": lambda d: d["layers"][0].update(args=[10**9, 10**9, 3]),
    "node name": lambda d: d["nodes"][0].update(name=f"x={RUN}"),
    "input name": lambda d: d["nodes"][0].update(target=f"x={RUN}"),
    "keyword": lambda d: d["nodes"][1].update(kwargs={f"a={RUN},b": 1}),
    "path": lambda d: d["layers"][0].update(path=f'x", {RUN}) #'),
    "target": lambda d: d["nodes"][1].update(target=f'x", {RUN}) #'),
    "method of module": lambda d: d["layers"][0].update(path="forward"),
    "operation": lambda d: d["nodes"][1].update(op="exec"),
    "argument": lambda d: d["nodes"][1].update(args=[{"code": RUN}]),
    "unknown node": lambda d: d["nodes"][1].update(args=[{"node": "later"}]),
    "tensor": lambda d: d["tensors"][0].update(stored="nothing"),
    "tensor kind": lambda d: d["tensors"][0].update(kind="module"),
    "no tensor": lambda d: d["tensors"].pop(0),
    "no nodes": lambda d: d.pop("nodes"),
    "nodes of text": lambda d: d.update(nodes="abc"),
    "version": lambda d: d.update(version=99),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_a_hostile_graph_is_refused_and_runs_nothing(
    attack: Callable[[Json], object], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names outside the allow-list and names that would become code are errors, digest or not."""
    monkeypatch.chdir(folder.parent)
    edited(folder, attack)
    with pytest.raises(ArtefactError, match=GRAPH) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    assert not (folder.parent / "pwned").exists()


def places(data: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in a JSON value."""
    items = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in list(items):
        yield data, key
        if isinstance(value, dict | list):
            yield from places(value)


def test_no_edit_of_a_graph_leads_to_another_error(folder: Path) -> None:
    """Any value replaced by any other either loads or is an ArtefactError."""
    values: list[Any] = [None, -1, 10**30, 1.5, "", "x", "class", "left", "getattr", [], {}, [[1]]]
    values += ["forward", "ModuleDict", {"node": "x"}, {"device": 5}, {"float": "a"}, {"dict": 5}]
    random, text = np.random.default_rng(0), (folder / GRAPH).read_text()
    tensors = {**result().model.state_dict(), "shift": torch.zeros(4)}
    refused = 0
    for _ in range(300):
        data = json.loads(text)
        every = list(places(data))
        container, key = every[random.integers(len(every))]
        container[key] = values[random.integers(len(values))]
        try:
            decode_graph(data, tensors)
        except ArtefactError:
            refused += 1
    assert refused > 150


def test_a_sealed_edit_is_accepted(folder: Path) -> None:
    """Negative control of the attacks: sealing as such isn't what is refused."""
    edited(folder, lambda d: d.update(note="harmless"))
    load(folder)
