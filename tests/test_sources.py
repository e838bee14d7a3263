"""Models from specifications: the right weights, or one line that says what is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pleas_fx.errors import SourceError
from pleas_fx.sources import load_model
from tests import model_files
from tests.model_files import FACTORY, plain, refused

factory, model = model_files.factory, model_files.model


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
            ("torchvision:resnet18@", "expected weights after @"),
            ("none.py:small@none.pt", "none.pt: no such file"),  # before anything is built
            ("", "not a model"),
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
            lambda s: {"net": s, "acc": 91.2, "optimizer": {"state": {}, "param_groups": []}},
            lambda s: {"n_averaged": torch.tensor(3), **{f"module.{k}": v for k, v in s.items()}},
            lambda s: {
                "state_dict": {
                    "loss.weight": torch.ones(2),
                    **{f"model.net.{k}": v for k, v in s.items()},
                }
            },
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

    def test_a_network_kept_twice_has_to_be_named(
        self, factory: Path, model: nn.Module, tmp_path: Path
    ) -> None:
        """A teacher and its student, say: nobody knows which is meant."""
        path = tmp_path / "w.pt"
        twice = {f"{who}.{k}": v for who in ("ema", "net") for k, v in plain(model).items()}
        torch.save(twice, path)
        with pytest.raises(SourceError, match=r"more than once, behind 'ema\.' and 'net\.'"):
            load_model(f"{factory}:small@{path}")

    def test_folders_may_hold_an_at_sign(self, model: nn.Module, tmp_path: Path) -> None:
        """Only the @ after the factory separates the weights."""
        folder = tmp_path / "me@work" / "a:b"
        folder.mkdir(parents=True)
        (folder / "models.py").write_text(FACTORY)
        save_file(plain(model), folder / "w.safetensors")
        found = load_model(f"{folder}/models.py:small@{folder}/w.safetensors")
        assert torch.equal(found.state_dict()["fc.weight"], model.state_dict()["fc.weight"])
        assert not load_model(f"{folder}/models.py:small").training

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
