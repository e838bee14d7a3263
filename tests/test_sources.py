"""Models from specifications: the right weights, or one line that says what is wrong."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pleas_fx.errors import SourceError
from pleas_fx.sources import load_model

FACTORY = """
import torch
from torch import nn

class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(self.relu(self.bn(self.conv(x))).mean((2, 3)))

INSTANCE = Small()

def small(): return Small()
def needs_argument(width): return Small()
def fails(): raise ValueError("no such\\nwidth")
def leaves(): raise SystemExit(3)
def wrong_type(): return {"a": 1}
def neighbour():
    import neighbour_of_factory
    return neighbour_of_factory.make(Small)
def spoiled():
    model = Small()
    model.bn.running_var[1] = float("inf")
    return model
"""


@pytest.fixture
def factory(tmp_path: Path) -> Path:
    """A Python file with factories, and a neighbour it imports."""
    path = tmp_path / "models.py"
    path.write_text(FACTORY)
    (tmp_path / "neighbour_of_factory.py").write_text("def make(kind): return kind()\n")
    return path


@pytest.fixture
def model(factory: Path) -> nn.Module:
    """A network with its own random weights."""
    torch.manual_seed(1)
    found = load_model(f"{factory}:small")
    for buffer in (found.get_buffer("bn.running_mean"), found.get_buffer("bn.running_var")):
        buffer.uniform_(0.5, 1.5)
    return found


def plain(model: nn.Module) -> dict[str, Tensor]:
    """A state dict without its metadata."""
    return dict(model.state_dict())


def refused(spec: str) -> str:
    """The message of the SourceError that ``spec`` causes; always one line."""
    with pytest.raises(SourceError) as caught:
        load_model(spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestFactories:
    """``file.py:factory``."""

    @pytest.mark.parametrize("name", ["small", "Small", "INSTANCE", "neighbour"])
    def test_functions_classes_instances_and_neighbours(self, factory: Path, name: str) -> None:
        """All give a network in eval mode, and the import path is as before."""
        before = list(sys.path)
        found = load_model(f"{factory}:{name}")
        assert isinstance(found, nn.Module)
        assert not found.training
        assert sys.path == before

    @pytest.mark.parametrize(
        ("name", "word"),
        [
            ("needs_argument", "width"),
            ("fails", "ValueError: no such"),
            ("leaves", "SystemExit"),
            ("wrong_type", "dict"),
            ("smal", "did you mean small"),
            ("spoiled", "'bn.running_var' has Inf"),
        ],
    )
    def test_what_goes_wrong_in_them_is_said(self, factory: Path, name: str, word: str) -> None:
        """Exceptions and wrong values name the factory."""
        message = refused(f"{factory}:{name}")
        assert word in message
        assert name in message

    def test_a_file_that_cannot_be_imported(self, tmp_path: Path) -> None:
        """A syntax error is the user's, and the file is named."""
        path = tmp_path / "broken.py"
        path.write_text("def small(:\n")
        assert "broken.py: importing it failed: SyntaxError" in refused(f"{path}:small")

    @pytest.mark.parametrize(
        ("spec", "word"),
        [
            ("none.py:small", "no such file"),
            ("folder/none", "no such file or folder"),
            ("none.pt2", "no such file"),
            ("resnet50", "expected torchvision:NAME"),
            ("weights.safetensors", "file.py:factory@weights.safetensors"),
            ("models.py", "models.py:factory"),
            ("torchvision:resnet18@weights.zip", "weights.zip: expected weights"),
        ],
    )
    def test_other_specifications_are_explained(self, spec: str, word: str) -> None:
        """A wrong form gets the right form as an answer."""
        assert word in refused(spec)


class TestWeights:
    """``@weights``: all of them fit, or the first that doesn't is named."""

    def test_safetensors(self, factory: Path, model: nn.Module, tmp_path: Path) -> None:
        """Every tensor arrives; without the file it would not (negative control)."""
        path = tmp_path / "w.safetensors"
        save_file(plain(model), path)
        found = load_model(f"{factory}:small@{path}")
        for key, value in model.state_dict().items():
            assert torch.equal(found.state_dict()[key], value), key
        other = load_model(f"{factory}:small")
        assert not torch.equal(other.state_dict()["conv.weight"], model.state_dict()["conv.weight"])

    @pytest.mark.parametrize(
        "wrap",
        [
            lambda s: s,
            lambda s: {"state_dict": s, "epoch": 3},
            lambda s: {"model": s},
            lambda s: {"model": {"state_dict": s}},
            lambda s: {f"module.{k}": v for k, v in s.items()},
            lambda s: {"state_dict": {f"module._orig_mod.{k}": v for k, v in s.items()}},
            lambda s: {k: v for k, v in s.items() if "num_batches" not in k},
        ],
    )
    def test_usual_checkpoints(
        self, factory: Path, model: nn.Module, tmp_path: Path, wrap: object
    ) -> None:
        """Wrappers and prefixes of training scripts are seen through."""
        path = tmp_path / "w.pt"
        torch.save(wrap(plain(model)), path)  # type: ignore[operator]
        found = load_model(f"{factory}:small@{path}")
        assert torch.equal(found.state_dict()["fc.weight"], model.state_dict()["fc.weight"])
        assert torch.equal(
            found.state_dict()["bn.running_var"], model.state_dict()["bn.running_var"]
        )

    @pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
    @pytest.mark.parametrize(
        ("change", "word"),
        [
            (lambda s: s.pop("bn.bias"), "'bn.bias' is missing"),
            (lambda s: s.update(extra=torch.ones(1)), "'extra' isn't in the network"),
            (
                lambda s: s.update({"fc.weight": torch.ones(7, 4)}),
                "'fc.weight' has shape (7, 4), the network's has (2, 4)",
            ),
            (
                lambda s: s.update({"conv.bias": torch.tensor([0.0, 1, float("nan"), 2])}),
                "'conv.bias' has NaN",
            ),
        ],
    )
    def test_the_first_misfit_is_named(
        self,
        factory: Path,
        model: nn.Module,
        tmp_path: Path,
        suffix: str,
        change: object,
        word: str,
    ) -> None:
        """Missing, unexpected, mis-shaped and NaN, from either kind of file."""
        state = {key: value.clone() for key, value in plain(model).items()}
        change(state)  # type: ignore[operator]
        path = tmp_path / f"w{suffix}"
        if suffix == ".pt":
            torch.save(state, path)
        else:
            save_file(state, path)
        message = refused(f"{factory}:small@{path}")
        assert word in message
        assert path.name in message

    @pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
    @pytest.mark.parametrize("cut", [0, 10, 300])
    def test_truncated_files(
        self, factory: Path, model: nn.Module, tmp_path: Path, suffix: str, cut: int
    ) -> None:
        """A file cut short is refused by name."""
        path = tmp_path / f"w{suffix}"
        if suffix == ".safetensors":
            save_file(plain(model), path)
        else:
            torch.save(plain(model), path)
        path.write_bytes(path.read_bytes()[:cut])
        assert path.name in refused(f"{factory}:small@{path}")

    @pytest.mark.parametrize("content", [{}, [1, 2], {"a": 3}, torch.ones(2)])
    def test_files_without_a_state_dict(
        self, factory: Path, tmp_path: Path, content: object
    ) -> None:
        """Lists, bare tensors and configuration aren't weights."""
        path = tmp_path / "w.pt"
        torch.save(content, path)
        assert "w.pt" in refused(f"{factory}:small@{path}")

    def test_missing_file(self, factory: Path) -> None:
        """The file is named, not the factory."""
        assert "none.pt: no such file" in refused(f"{factory}:small@none.pt")


class Hostile:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.mkdir, (str(self.mark),)


class TestHostileFiles:
    """Files can't run code."""

    @pytest.fixture
    def mark(self, tmp_path: Path) -> Path:
        """The folder that hostile code would make."""
        return tmp_path / "executed"

    @pytest.mark.parametrize("raw", [True, False])
    def test_a_malicious_checkpoint_is_not_executed(
        self, factory: Path, tmp_path: Path, mark: Path, raw: bool
    ) -> None:
        """Refused in one line with its name; reading it carelessly does execute it."""
        path = tmp_path / "evil.pt"
        if raw:
            path.write_bytes(pickle.dumps(Hostile(mark), protocol=2))
        else:
            torch.save({"state_dict": Hostile(mark)}, path)
        message = refused(f"{factory}:small@{path}")
        assert "evil.pt: isn't a file of tensors only" in message
        assert "mkdir" in message
        assert not mark.exists()
        with path.open("rb") as file:  # negative control
            pickle.load(file) if raw else torch.load(path, weights_only=False)
        assert mark.exists()

    def test_a_pickled_module_is_refused(
        self, factory: Path, model: nn.Module, tmp_path: Path
    ) -> None:
        """torch.save(model) needs its code to load; the remedy is in the message."""
        path = tmp_path / "whole.pt"
        torch.save(nn.Sequential(nn.Linear(2, 2)), path)
        assert "save model.state_dict()" in refused(f"{factory}:small@{path}")

    @pytest.mark.parametrize("member", ["data/sample_inputs/model.pt", "weight"])
    def test_a_malicious_program_is_not_executed(
        self, model: nn.Module, tmp_path: Path, mark: Path, member: str
    ) -> None:
        """torch.export.load would unpickle whole objects; here it may not."""
        path, evil = tmp_path / "m.pt2", tmp_path / "evil.pt2"
        torch.export.save(torch.export.export(model, (torch.zeros(2, 3, 8, 8),)), path)
        torch.save(Hostile(mark), tmp_path / "payload")
        payload = (tmp_path / "payload").read_bytes()
        _rewritten(path, evil, member, payload)
        assert "evil.pt2" in refused(str(evil))
        assert not mark.exists()
        with pytest.raises(Exception):  # noqa: B017, PT011 - negative control, in whatever way
            torch.export.load(evil)
        assert mark.exists()

    @pytest.mark.parametrize(
        "expression",
        [
            "__import__('os').mkdir('x')",
            "exec(chr(1))",
            "s0.__class__",
            "Eq(s0, a)",
            "Symbol('s0', real=open)",
            "S('a.b')",
            "(x:=1)",
            "[s0]",
        ],
    )
    def test_size_expressions_are_not_evaluated_unless_plain(
        self, model: nn.Module, tmp_path: Path, expression: str
    ) -> None:
        """Sympy evaluates strings as Python; only symbols and sympy's names get there."""
        path, evil = tmp_path / "m.pt2", tmp_path / "evil.pt2"
        batch = torch.export.Dim("batch", min=1, max=64)
        program = torch.export.export(
            model, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=({0: batch},)
        )
        torch.export.save(program, path)
        _with_expression(path, evil, expression)
        assert "no plain expression" in refused(str(evil))
        load_model(str(path))  # negative control: the original's own expressions are plain


def _rewritten(path: Path, target: Path, member: str, payload: bytes) -> None:
    """A copy of a program with one pickle replaced, or all weights said to be pickles."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if member == "weight" and name.endswith("weights_config.json"):
                data = data.replace(b'"use_pickle": false', b'"use_pickle": true')
                data = data.replace(b'"use_pickle":false', b'"use_pickle":true')
            is_weight = member == "weight" and "/weights/weight_" in name
            new.writestr(name, payload if is_weight or name.endswith(member) else data)


def _with_expression(path: Path, target: Path, expression: str) -> None:
    import re

    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("models/model.json"):
                text = data.decode()
                changed = re.sub(r'("expr_str":\s*)"[^"]*"', rf'\1"{expression}"', text, count=1)
                assert changed != text
                data = changed.encode()
            new.writestr(name, data)


class TestPrograms:
    """``.pt2``."""

    def test_the_program_computes_what_the_network_does(
        self, model: nn.Module, tmp_path: Path
    ) -> None:
        """Also at another batch size, after eval() and through a trace; in-place ReLU included."""
        path = tmp_path / "m.pt2"
        batch = torch.export.Dim("batch", min=1, max=64)
        program = torch.export.export(
            model, (torch.randn(2, 3, 8, 8),), dynamic_shapes=({0: batch},)
        )
        torch.export.save(program, path)
        found = load_model(str(path)).eval()
        images = torch.randn(7, 3, 8, 8)
        expected = model(images)
        assert torch.allclose(found(images), expected, atol=1e-6)
        assert torch.allclose(torch.fx.symbolic_trace(found)(images), expected, atol=1e-6)
        assert (expected - model(-images)).abs().max() > 1e-3  # the comparison can fail

    @pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04broken"])
    def test_broken_programs(self, tmp_path: Path, content: bytes) -> None:
        """Named, in one line."""
        path = tmp_path / "m.pt2"
        path.write_bytes(content)
        assert "m.pt2: can't be read" in refused(str(path))

    def test_nan_is_refused(self, model: nn.Module, tmp_path: Path) -> None:
        """As for any other source."""
        model.get_parameter("fc.weight").data[0, 0] = float("nan")
        path = tmp_path / "m.pt2"
        torch.export.save(torch.export.export(model, (torch.zeros(2, 3, 8, 8),)), path)
        assert "'fc.weight' has NaN" in refused(str(path))


class TestZoo:
    """``torchvision:`` and ``timm:``."""

    @pytest.fixture(autouse=True)
    def _offline(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def forbidden(*_: object, **__: object) -> None:
            raise AssertionError("a download was attempted")

        monkeypatch.setattr("urllib.request.urlopen", forbidden)
        monkeypatch.setattr("torch.hub.download_url_to_file", forbidden)

    @pytest.mark.parametrize("name", ["resnet18", "fcn_resnet50"])
    def test_torchvision_never_downloads(self, name: str) -> None:
        """Not even the backbone that segmentation models fetch by default."""
        pytest.importorskip("torchvision")
        assert not load_model(f"torchvision:{name}").training

    def test_timm_takes_tags(self) -> None:
        """A tag picks the configuration; the weights stay random."""
        pytest.importorskip("timm")
        assert isinstance(load_model("timm:resnet18.a1_in1k"), nn.Module)

    @pytest.mark.parametrize(
        ("package", "name", "close"),
        [
            ("torchvision", "resnet19", "resnet18"),
            ("torchvision", "fcn_resnet5", "fcn_resnet50"),
            ("timm", "resnet181", "resnet18"),
        ],
    )
    def test_unknown_names_get_suggestions(self, package: str, name: str, close: str) -> None:
        """The closest names are in the message."""
        pytest.importorskip(package)
        message = refused(f"{package}:{name}")
        assert f"no model {name!r}" in message
        assert close in message

    @pytest.mark.parametrize("name", ["hf-hub:someone/model", "local-dir:/", "resnet18.nonsense"])
    def test_timm_names_that_mean_a_download_are_refused(self, name: str) -> None:
        """timm would fetch these; they aren't in its list."""
        pytest.importorskip("timm")
        assert "timm" in refused(f"timm:{name}")

    @pytest.mark.parametrize("package", ["torchvision", "timm"])
    def test_a_missing_package_names_the_extra(
        self, monkeypatch: pytest.MonkeyPatch, package: str
    ) -> None:
        """Installing pleas-fx[zoo] is the remedy."""
        monkeypatch.setitem(sys.modules, package, None)
        assert "pleas-fx[zoo]" in refused(f"{package}:resnet18")


def test_an_artefact_folder_is_loaded_by_the_artefact_module(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Any folder goes there, whatever its name looks like."""
    import types

    network = nn.Linear(2, 2)
    module = types.ModuleType("pleas_fx.artefact")
    module.load = lambda folder: network  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pleas_fx.artefact", module)
    folder = tmp_path / "odd@name.pt"
    folder.mkdir()
    assert load_model(str(folder)) is network


def test_loading_a_file_twice_reads_it_twice(tmp_path: Path) -> None:
    """An edited file isn't confused with what it was, in one process."""
    path = tmp_path / "m.py"
    for width in (3, 5):
        path.write_text(f"from torch import nn\ndef f(): return nn.Linear({width}, 1)\n")
        os.utime(path, (width, width))
        assert load_model(f"{path}:f").get_parameter("weight").shape == (1, width)


def test_sources_can_be_imported_first() -> None:
    """No import cycle."""
    code = "import pleas_fx.sources, pleas_fx.datasets, pleas_fx.programs"
    subprocess.run([sys.executable, "-c", code], check=True)
