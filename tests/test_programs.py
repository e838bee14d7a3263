"""Files that carry code: .pt2 programs work, and hostile files aren't executed."""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from pleas_fx.sources import load_model
from tests import model_files
from tests.model_files import refused

factory, model = model_files.factory, model_files.model


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
