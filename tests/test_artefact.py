"""An artefact is whole, computes the same, and holds nothing that could run when it is read."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from passes.export import Parity
from passes.trace import trace
from pleas_fx import artefact
from pleas_fx.artefact import FILES, GRAPH, SOURCE, WEIGHTS, load, save
from pleas_fx.errors import ArtefactError
from pleas_fx.graph_json import decode_graph, encode_graph, take_apart
from pleas_fx.result import MergeResult
from tests.networks import NETWORKS, Network, noise
from tests.randomise import seeded
from tests.results import NAN, Merged, result

Json = dict[str, Any]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write an empty ONNX file: tests of folders need no real one."""

    def export(*args: Any, **_: object) -> Parity:
        Path(args[2]).write_bytes(b"onnx")
        return Parity(1e-7, (("output_a", 1e-7), ("output_b", NAN)), (2, 3), "none")

    monkeypatch.setattr(artefact, "export_onnx", export)


@pytest.fixture
def folder(quick: None, tmp_path: Path) -> Path:
    """A saved artefact."""
    return save(result(), tmp_path / "out")


def outputs(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """All output tensors."""
    with torch.no_grad():
        return tree_leaves(model(*inputs))


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    """Exactly equal, every one."""
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder."""
    files = (f for f in folder.rglob("*") if f.is_file())
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in files}


def sealed(data: Json) -> str:
    """A graph with the digest that belongs to it: what someone who knows the format writes."""
    data.pop("sha256", None)
    return json.dumps({**data, "sha256": artefact._digest(data)})


def edited(folder: Path, change: Callable[[Json], object]) -> None:
    """Change the graph of an artefact and seal it again."""
    data = json.loads((folder / GRAPH).read_text())
    change(data)
    (folder / GRAPH).write_text(sealed(data))


# -- what is written -----------------------------------------------------------------------------


def test_artefact_holds_the_network_and_the_evidence(tmp_path: Path) -> None:
    """Every file is there; what loads from them computes exactly what was merged."""
    merged = result()
    assert merged.save(tmp_path / "deep" / "out") == tmp_path / "deep" / "out"
    folder = tmp_path / "deep" / "out"
    assert {f.name for f in folder.iterdir()} == set(FILES)
    expected = outputs(merged.model, merged.inputs)
    assert same(outputs(load(folder), merged.inputs), expected)
    assert yaml.safe_load((folder / "recipe.yaml").read_text()) == merged.recipe
    assert json.loads((folder / "report.json").read_text())["onnx"]["max_error"] < 1e-5
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["out"]


def test_model_py_runs_with_torch_alone(folder: Path, tmp_path: Path) -> None:
    """In a fresh interpreter without our packages, model.py gives exactly the same outputs."""
    merged = result()
    torch.save(merged.inputs[0], tmp_path / "x.pt")
    program = (
        "import sys, torch; sys.modules['safetensors'] = None; from model import load\n"
        f"torch.save(load()(torch.load({str(tmp_path / 'x.pt')!r})), {str(tmp_path / 'y.pt')!r})\n"
        "assert not [m for m in sys.modules if m.split('.')[0] in ('pleas_fx', 'passes')]"
    )
    torch.set_num_threads(1)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    subprocess.run([sys.executable, "-c", program], cwd=folder, env=environment, check=True)
    found = tree_leaves(torch.load(tmp_path / "y.pt"))
    assert same(found, outputs(merged.model, merged.inputs))


@pytest.mark.parametrize("network", NETWORKS.values(), ids=str)
def test_every_network_survives_both_ways_of_loading(network: Network, tmp_path: Path) -> None:
    """Graph and source of the whole zoo reproduce outputs, state and code exactly."""
    module = trace(network.make(0), network.inputs()).module
    stored = take_apart(module)
    data = json.loads(json.dumps(encode_graph(module, stored), allow_nan=False))
    again = decode_graph(data, stored.tensors)
    assert same(outputs(again, network.inputs()), outputs(module, network.inputs()))
    assert again.state_dict().keys() == module.state_dict().keys()
    (tmp_path / SOURCE).write_text(artefact.model_source(module, stored, "title", "y"))
    (tmp_path / WEIGHTS).write_bytes(artefact.safetensors.torch.save(dict(stored.tensors)))
    network_of_source = artefact._execute(tmp_path)
    assert same(outputs(network_of_source, network.inputs()), outputs(module, network.inputs()))


def test_tied_tensors_are_stored_once_and_stay_tied(folder: Path) -> None:
    """One parameter under two names is one tensor in the file and one parameter again."""
    with artefact.safetensors.safe_open(folder / WEIGHTS, "pt") as file:
        assert set(file.keys()) & {"left.weight", "right.weight"} == {"left.weight"}
    for network in (load(folder), artefact._execute(folder)):
        assert network.get_parameter("left.weight") is network.get_parameter("right.weight")
        assert network.get_parameter("left.bias") is not network.get_parameter("right.bias")


def test_constants_stay_out_of_the_state(folder: Path) -> None:
    """A buffer that isn't in the network's state_dict isn't in the loaded one's either."""
    assert "shift" in dict(load(folder).named_buffers())
    assert load(folder).state_dict().keys() == result().model.state_dict().keys()


def test_loaded_networks_share_nothing(folder: Path) -> None:
    """Changing one loaded network changes neither another one nor the files; both are in eval."""
    first, second = load(folder), load(folder)
    with torch.no_grad():
        first.get_parameter("left.weight").zero_()
    inputs = result().inputs
    assert same(outputs(second, inputs), outputs(result().model, inputs))
    assert same(outputs(load(folder), inputs), outputs(second, inputs))
    assert not any(module.training for module in first.modules())


def test_memory_order_and_mode_of_the_network_do_not_matter(quick: None, tmp_path: Path) -> None:
    """Channels-last weights and train mode are saved as the plain network in eval mode."""
    merged = result()
    merged.model.to(memory_format=torch.channels_last).train()
    state = {k: v.clone() for k, v in merged.model.state_dict().items()}
    loaded = load(save(merged, tmp_path / "out"))
    assert same(outputs(loaded, merged.inputs), outputs(result().model, merged.inputs))
    assert merged.model.training
    assert all(torch.equal(v, state[k]) for k, v in merged.model.state_dict().items())


def test_saving_twice_writes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    """Nothing of the run's time or place is in the files."""
    assert contents(save(result(), tmp_path / "elsewhere" / "b")) == contents(folder)
    assert not any(str(tmp_path).encode() in data for data in contents(folder).values())


def test_json_is_strict(folder: Path) -> None:
    """NaN is null: no parser chokes on the evidence."""

    def refuse(name: str) -> None:
        raise AssertionError(name)

    for name in ("report.json", "certificate.json", GRAPH):
        json.loads((folder / name).read_text(), parse_constant=refuse)
    assert json.loads((folder / "report.json").read_text())["onnx"]["outputs"]["output_b"] is None


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
        (traced(Strange()), r"strange: .*tests\.test_artefact\.Strange"),
        (traced(Widened(3, 4, 1)), r"strange: .*tests\.test_artefact\.Widened"),
        (traced(inconsistent()), r"strange: nn\.Conv2d\(3, 4, 1\) doesn't give"),
        (traced(nn.LSTM(3, 4)), r"strange: nn\.LSTM|nn\.LSTM\(\) can't be built"),
        (calling(doubled), r"node doubled: .*tests\.test_artefact\.doubled"),
        (calling(torch.load), r"torch\.serialization\.load"),
        (calling(np.tanh), r"tanh"),
    ],
    ids=["own layer", "subclass", "inconsistent", "recurrent", "own function", "load", "numpy"],
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
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        data = json.loads((folder / GRAPH).read_text())
        every = list(places(data))
        container, key = every[random.integers(len(every))]
        container[key] = values[random.integers(len(values))]
        try:
            decode_graph(data, result().model.state_dict() | {"shift": torch.zeros(4)})
        except ArtefactError:
            refused += 1
    assert refused > 150


def test_a_sealed_edit_is_accepted(folder: Path) -> None:
    """Negative control of the attacks: sealing as such isn't what is refused."""
    edited(folder, lambda d: d.update(note="harmless"))
    load(folder)


# -- folders -------------------------------------------------------------------------------------


def full(*_: object, **__: object) -> None:
    """A disk without space."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupted(*_: object, **__: object) -> None:
    """Control-C."""
    raise KeyboardInterrupt


def failing_at(steps: int, error: Callable[..., None], real: Callable[..., Any]) -> Iterator[Any]:
    """A function that works ``steps`` times and then fails."""
    left = iter(range(steps))

    def attempt(*args: Any, **kwargs: Any) -> Any:
        if next(left, None) is None:
            return error()
        return real(*args, **kwargs)

    return attempt  # type: ignore[return-value]


@pytest.mark.parametrize("before", ["nothing", "artefact"])
@pytest.mark.parametrize("error", [full, interrupted])
@pytest.mark.parametrize(
    ("owner", "name", "steps"),
    [
        (Path, "write_bytes", 0),
        (Path, "write_text", 0),
        (Path, "write_text", 4),
        (artefact, "render", 0),
        (os, "fsync", 3),
        (Path, "rename", 0),
        (Path, "rename", 1),
    ],
)
def test_a_failure_leaves_the_old_artefact_or_none(
    owner: Any,
    name: str,
    steps: int,
    error: Callable[..., None],
    before: str,
    quick: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A full disk or Control-C at any step: what was there before is there, and nothing else."""
    if before == "artefact":
        save(result(), tmp_path / "out")
    old = contents(tmp_path)
    if name == "rename" and steps == 1 and before == "nothing":
        pytest.skip("there is one rename only")
    real = getattr(owner, name)
    attempts = failing_at(steps, error, real)
    restore = lambda self, other: (  # noqa: E731
        real(self, other) if self.suffix == ".old" else attempts(self, other)  # type: ignore[operator]
    )
    monkeypatch.setattr(owner, name, restore if name == "rename" else attempts)
    expected = ArtefactError if error is full else KeyboardInterrupt
    with pytest.raises(expected, match="No space left" if error is full else None):
        save(result(recipe={"seed": 1}), tmp_path / "out")
    assert contents(tmp_path) == old
    assert sorted(p.name for p in tmp_path.iterdir()) == (["out"] if old else [])


def test_an_artefact_is_replaced_and_foreign_files_stay(folder: Path) -> None:
    """Saving again replaces every file of the artefact; the owner's notes in it survive."""
    (folder / "notes").mkdir()
    (folder / "notes" / "a.txt").write_text("mine")
    (folder / "merged.onnx.data").write_text("of the old network")
    save(result(recipe={"seed": 1}), folder)
    assert yaml.safe_load((folder / "recipe.yaml").read_text()) == {"seed": 1}
    assert (folder / "notes" / "a.txt").read_text() == "mine"
    assert not (folder / "merged.onnx.data").exists()
    assert [p.name for p in folder.parent.iterdir()] == ["out"]


def test_a_folder_of_something_else_is_untouched(quick: None, tmp_path: Path) -> None:
    """Other people's folders and files are refused, not replaced; an empty folder is used."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    (tmp_path / "file").write_bytes(b"x")
    before = contents(tmp_path)
    for name, match in (("photos", "other files"), ("file", "is a file"), ("file/out", "write")):
        with pytest.raises(ArtefactError, match=match):
            save(result(), tmp_path / name)
    assert contents(tmp_path) == before
    (tmp_path / "empty").mkdir()
    load(save(result(), tmp_path / "empty"))


def test_a_link_to_a_folder_stays_a_link(folder: Path, tmp_path: Path) -> None:
    """Saving through a symbolic link replaces the folder it leads to."""
    (tmp_path / "latest").symlink_to(folder)
    save(result(recipe={"seed": 2}), tmp_path / "latest")
    assert (tmp_path / "latest").is_symlink()
    assert yaml.safe_load((folder / "recipe.yaml").read_text()) == {"seed": 2}


def test_a_network_without_onnx_is_not_saved(tmp_path: Path) -> None:
    """When the export fails there is no artefact, and the error says why."""
    merged: MergeResult = result(output_names=("only one",))
    with pytest.raises(artefact.ExportError, match="1 output names for 2 outputs"):
        save(merged, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_equality_of_outputs_tells_networks_apart() -> None:
    """Negative control: another network of the same kind is not the same."""
    first, second = result(), result(seeded(Merged, 1))
    assert not same(outputs(first.model, first.inputs), outputs(second.model, second.inputs))
