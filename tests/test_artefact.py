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

import pytest
import torch
import yaml
from torch.utils._pytree import tree_leaves

from passes.trace import trace
from pleas_fx import artefact
from pleas_fx.artefact import FILES, GRAPH, SOURCE, WEIGHTS, load, save
from pleas_fx.errors import ArtefactError
from pleas_fx.graph_json import decode_graph, encode_graph, take_apart
from pleas_fx.result import MergeResult
from tests.networks import NETWORKS, STORABLE, Network
from tests.randomise import seeded
from tests.results import Merged, contents, outputs, result, same, without_onnx

Json = dict[str, Any]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests of folders need no real ONNX file."""
    without_onnx(monkeypatch)


@pytest.fixture
def folder(quick: None, tmp_path: Path) -> Path:
    """A saved artefact."""
    return save(result(), tmp_path / "out")


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
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    subprocess.run([sys.executable, "-c", program], cwd=folder, env=environment, check=True)
    found = tree_leaves(torch.load(tmp_path / "y.pt"))
    assert same(found, outputs(merged.model, merged.inputs))


@pytest.mark.parametrize("network", STORABLE, ids=str)
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


def test_functions_of_somebodys_own_code_are_refused_by_name() -> None:
    """An artefact needs none of the sources' code, so it can't call any."""
    network = NETWORKS["wrapped_attention"]
    module = trace(network.make(0), network.inputs()).module
    with pytest.raises(ArtefactError, match=r"node attention: .*attention_networks\.attention"):
        encode_graph(module, take_apart(module))


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
        (Path, "rename", 1),  # the second one: the old folder has made way
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
    steps = min(steps, 1 if old else 0) if name == "rename" else steps
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
