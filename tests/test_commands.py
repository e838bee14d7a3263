"""The commands on real networks, what evaluate computes, and the demonstration."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pleas_fx.commands.evaluate import accuracies
from pleas_fx.errors import CalibrationError
from tests import command_line
from tests.command_line import Call

run, here = command_line.run, command_line.here


class TestAccuracies:
    """Labels count the classes of all outputs side by side."""

    OUTPUTS = (
        torch.tensor([[9.0, 0], [0, 2], [1, 0], [0, 1]]),
        torch.tensor([[0.0, 1, 0], [3, 0, 0], [0, 0, 8], [0, 7, 0]]),
    )

    def test_each_output_on_its_own_classes(self) -> None:
        """By hand: labels 0 and 1 are the first output's, 2 to 4 the second one's."""
        found = accuracies(self.OUTPUTS, torch.tensor([0, 0, 4, 2]), None)
        assert found == {"accuracy": [0.5, 0.5], "task_average": 0.5, "joint_accuracy": 0.5}

    def test_one_output_alone(self) -> None:
        """Then labels are its own classes."""
        found = accuracies(self.OUTPUTS, torch.tensor([1, 0, 2, 1]), 1)
        assert found["accuracy"] == [1.0]

    def test_an_output_without_examples_has_no_accuracy(self) -> None:
        """It doesn't count in the average."""
        found = accuracies(self.OUTPUTS, torch.tensor([0, 1, 0, 1]), None)
        assert found["accuracy"] == [1.0, None]
        assert found["task_average"] == 1.0

    @pytest.mark.parametrize("label", [-1, 5])
    def test_labels_out_of_range(self, label: int) -> None:
        """The range is in the message."""
        with pytest.raises(CalibrationError, match="the network's classes 0 to 4"):
            accuracies(self.OUTPUTS, torch.tensor([0, 1, 2, label]), None)


class TestReal:
    """Without fakes, on networks of a few hundred parameters."""

    def test_groups(self, run: Callable[..., Call], here: Path) -> None:
        """The one group there is, as JSON and as a table."""
        found = run("groups", "nets.py:a", "--input", "1,3,8,8", "--json").document
        assert found["certificate"]["passed"]
        sizes = [(g["size"], ["fc.weight", 1] in g["axes"]) for g in found["groups"]]
        assert (6, True) in sizes
        text = run("groups", "nets.py:a", "--input", "1,3,8,8").out
        assert "certificate passed" in text
        assert "conv, fc" in text
        assert "network output" in text

    def test_merge_evaluate_export_and_again(self, run: Callable[..., Call], here: Path) -> None:
        """The whole way; the saved recipe gives the same network."""
        sources = ("nets.py:a", "nets.py:b")
        first = run("merge", *sources, "--calibration", "nets.py:data", "--width", "1.5",
                    "--out", "m", "--json")  # fmt: skip
        assert first.status == 0, first.err
        assert first.document["merged"]["params"] > 0
        found = run("evaluate", "m", "--data", "nets.py:data", "--labels", "nets.py:labels",
                    "--json").document  # fmt: skip
        assert found["examples"] == 40
        assert found["onnx"]["same_class"] == 1.0
        assert 0 <= found["task_average"] <= 1
        beside = run("evaluate", "m", "--data", "nets.py:labelled", "--json").document
        assert beside == found
        assert run("evaluate", "m", "--data", "nets.py:data").status == 0
        exported = run("export", "m", "--out", "x.onnx", "--json").document
        assert exported["max_error"] < 1e-4
        assert (here / "x.onnx").stat().st_size == exported["bytes"]
        assert run("merge", "m/recipe.yaml", "--out", "again").status == 0
        weights = [(here / folder / "model.safetensors").read_bytes() for folder in ("m", "again")]
        assert weights[0] == weights[1]


class TestDemo:
    """The demonstration; its merges are the library's tests."""

    def test_outside_a_checkout_it_says_so(
        self, run: Callable[..., Call], here: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In one line."""
        for name in [n for n in sys.modules if n.split(".")[0] == "fixtures"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "fixtures", None)  # type: ignore[arg-type]
        call = run("demo")
        assert call.status == 1
        assert call.err.strip() == (
            "error: the demo needs the fixtures: run it in a checkout of the repository"
        )

    def test_the_task_average_is_over_each_networks_own_classes(self) -> None:
        """Outputs that are right on one half only count half."""
        from pleas_fx import demo

        labels = torch.arange(10)
        right = torch.eye(5)[labels % 5]
        assert demo.task_average([right, right], labels) == 1.0
        assert demo.task_average([right, -right], labels) == 0.5

    def test_the_tables_are_written(
        self, run: Callable[..., Call], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Every row in the terminal, in Markdown and in JSON."""
        from pleas_fx import demo

        row = demo.Row("pleas-fx, 1x FLOPs", 0.9625, 0.97, 1.0, 12.25)
        blank = demo.Row("exact ensemble", 0.97, 2.0, 2.0, None)
        images = demo.Images((), (), torch.zeros(1), torch.zeros(1))

        class Chosen:
            model = None

            def save(self, folder: Path) -> Path:
                return folder

        monkeypatch.setattr(demo, "fixtures", lambda: images)
        monkeypatch.setattr(demo, "separate_rows", lambda *_: iter([blank, row]))
        monkeypatch.setattr(demo, "joint_rows", lambda *_: ((row,), Chosen()))
        monkeypatch.setattr(demo, "onnx_agreement", lambda *_: (1e-7, 1.0))
        call = run("demo", "--out", tmp_path / "o")
        assert call.status == 0, call.err
        assert "96.25%" in call.out
        assert str(tmp_path / "o" / "demo") in call.out.replace("\n", "")
        text = (tmp_path / "o" / "demo-table.md").read_text()
        assert text.count("| pleas-fx, 1x FLOPs | 96.25% | 0.97 | 1.00 | 12.2 |") == 2
        saved = json.loads((tmp_path / "o" / "demo-table.json").read_text())
        assert saved["separate"][0]["seconds"] is None
        assert saved["joint"][0]["accuracy"] == 0.9625
