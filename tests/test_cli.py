"""The command line: what it prints where, what it exits with, and what it hands to the library."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import pleas_fx.api as api
from pleas_fx import cli
from pleas_fx.calibration import PerSource
from pleas_fx.commands.evaluate import accuracies
from pleas_fx.commands.recipe import Recipe, read
from pleas_fx.errors import BudgetError, CalibrationError, OptionError, PleasError, SourceError
from pleas_fx.ir import Count, GroupId, GroupPlan, Plan, Report

COMMANDS = ("groups", "plan", "merge", "evaluate", "export", "demo")

NETWORKS = """
import torch
from torch import nn

class Small(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.fc = nn.Linear(6, classes)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))

def a():
    print("noise on stdout")
    torch.manual_seed(1)
    return Small(3)

def b():
    torch.manual_seed(2)
    return Small(2)

def data():
    return torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(3))

def labels():
    return torch.arange(40) % 5
"""


@dataclass
class Call:
    """What one call of the program did."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.out, parse_constant=lambda name: pytest.fail(f"{name} isn't JSON"))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Call]:
    """Call the program in this process."""

    def call(*arguments: object) -> Call:
        monkeypatch.setattr(sys, "argv", ["pleas-fx", *map(str, arguments)])
        capsys.readouterr()
        status = 0
        try:
            cli.main()
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        captured = capsys.readouterr()
        return Call(status, captured.out, captured.err)

    return call


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with networks and data, which is the current one."""
    (tmp_path / "nets.py").write_text(NETWORKS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@dataclass
class FakeResult:
    """What a merge returns, without merging."""

    plan: Plan
    report: Report
    output_names: tuple[str, ...] = ("output_a", "output_b")

    def save(self, folder: Path) -> Path:
        """Make the folder."""
        Path(folder).mkdir(parents=True)
        return Path(folder)


PLAN = Plan((GroupPlan(GroupId(0), 6, (), float("nan"), 0.5, 2),), 2)
REPORT = Report((), (Count(100, 1000), Count(90, 900)), Count(150, 1200), {"fit": 0.5}, 0, ("w",))


@pytest.fixture
def merged(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments that calls of merge and plan get; nothing is merged."""
    calls: list[dict[str, Any]] = []

    def fake_merge(**arguments: Any) -> FakeResult:
        calls.append(arguments)
        arguments["progress"]("fit")
        return FakeResult(PLAN, REPORT)

    def fake_plan(**arguments: Any) -> Plan:
        calls.append(arguments)
        return PLAN

    monkeypatch.setattr(api, "merge", fake_merge)
    monkeypatch.setattr(api, "plan", fake_plan)
    return calls


class TestHelp:
    """Help is there, and cheap."""

    def test_every_command_is_listed_and_explained(self, run: Callable[..., Call]) -> None:
        """As in the contract, each with --json and --debug."""
        overview = run("--help").out
        for command in COMMANDS:
            assert command in overview
            page = run(command, "--help")
            assert page.status == 0
            assert "--json" in page.out
            assert "--debug" in page.out

    @pytest.mark.parametrize("arguments", [["--help"], ["merge", "--help"], ["--version"]])
    def test_help_does_not_import_torch(self, arguments: list[str]) -> None:
        """Half a second is only kept without the heavy packages."""
        code = (
            "import sys\n"
            "from pleas_fx.cli import main\n"
            "try: main()\n"
            "except SystemExit as stop: assert not stop.code\n"
            "heavy = {'torch', 'numpy', 'scipy', 'onnx', 'networkx'} & set(sys.modules)\n"
            "assert not heavy, heavy"
        )
        command = [sys.executable, "-c", code, *arguments]
        subprocess.run(command, check=True, capture_output=True)

    @pytest.mark.parametrize(
        "arguments",
        [["nonsense"], ["merge"], ["groups", "--width"], ["merge", "a", "--flops", "x"]],
    )
    def test_usage_errors_exit_with_2(self, run: Callable[..., Call], arguments: list[str]) -> None:
        """Nothing on stdout, the usage on stderr."""
        call = run(*arguments)
        assert (call.status, call.out) == (2, "")
        assert "Usage" in call.err


class TestErrors:
    """One line on stderr and an exit status that says whose fault it is."""

    @pytest.mark.parametrize("as_json", [False, True])
    @pytest.mark.parametrize(
        ("error", "status", "line"),
        [
            (BudgetError("from 0.1\nto 2"), 1, "error: from 0.1 to 2"),
            (SourceError("x"), 1, "error: x"),
            (KeyboardInterrupt(), 130, "interrupted"),
            (ZeroDivisionError("why"), 70, "this is a bug: ZeroDivisionError: why (--debug"),
        ],
    )
    def test_exit_status_and_line(
        self,
        run: Callable[..., Call],
        here: Path,
        monkeypatch: pytest.MonkeyPatch,
        error: BaseException,
        status: int,
        line: str,
        as_json: bool,
    ) -> None:
        """For a user's mistake, an interrupt and a bug; as JSON on request."""

        def fails(*_: object) -> None:
            raise error

        monkeypatch.setattr(api, "permutation_groups", fails)
        call = run("groups", "nets.py:b", *(["--json"] if as_json else []))
        assert call.status == status
        assert call.err.startswith(line)
        assert call.err.count("\n") == 1
        assert "Traceback" not in call.err
        assert (call.document["error"]["type"] if as_json else call.out) == (
            type(error).__name__ if as_json else ""
        )

    def test_debug_shows_the_traceback(self, run: Callable[..., Call], here: Path) -> None:
        """And still ends with the line."""
        call = run("groups", "nets.py:none", "--debug")
        assert call.status == 1
        assert "Traceback" in call.err
        assert call.err.strip().splitlines()[-1].startswith("error: nets.py: has no 'none'")

    @pytest.mark.parametrize(
        ("arguments", "word"),
        [
            (["groups", "nets.py:b", "--input", "1,x"], "1,3,224,224"),
            (["groups", "nets.py:b", "--input", "0,3"], "all positive"),
            (["groups", "nets.py:b", "--input", "1,5,8,8"], "error:"),
            (["merge", "nets.py:a", "nets.py:b"], "--calibration DATA, or --input"),
            (["merge", "nets.py:a", "nets.py:b", "--calibration", "no.npy"], "no.npy: no such"),
            (["merge", "nets.py:a", "none.py:b", "--input", "1,3,8,8"], "none.py: no such"),
            (["merge", "nets.py:a", "--calibration", "nets.py:data"], "at least two"),
            (["merge", *["nets.py:a"] * 3, *["--calibration", "nets.py:data"] * 2], "2 for 3"),
            (["merge", "none.yaml"], "none.yaml: no such file"),
            (["plan", "nets.py:a", "nets.py:a", "--input", "1,3,8,8", "--mean", "x"], "mean 'x'"),
            (["plan", "nets.py:a", "nets.py:a", "--input", "1,3,8,8", "--device", "q"], "'q'"),
            (["merge", "nets.py:a", "nets.py:b", "--calibration", "nets.py:data", "--out", "."],
             "holds other files"),
            (["evaluate", "none", "--data", "nets.py:data"], "none"),
            (["export", "nets.py:labels"], "not a torch.nn.Module"),
        ],
    )  # fmt: skip
    def test_mistakes_get_one_line(
        self, run: Callable[..., Call], here: Path, arguments: list[str], word: str
    ) -> None:
        """Exit 1, and the line names what is wrong."""
        call = run(*arguments)
        assert call.status == 1, call.err
        assert call.err.splitlines()[-1].startswith("error: ")
        assert word in call.err


class TestArguments:
    """What the command line says reaches the library."""

    def test_options_of_merge(
        self, run: Callable[..., Call], here: Path, merged: list[dict[str, Any]]
    ) -> None:
        """Those given, and no others."""
        call = run(
            "merge", "nets.py:a", "nets.py:b", "--calibration", "nets.py:data", "--flops", "1.2",
            "--heads", "joint", "--method", "permute", "--seed", "7", "--out", "o",
        )  # fmt: skip
        assert call.status == 0, call.err
        (given,) = merged
        assert [type(model).__name__ for model in given["models"]] == ["Small", "Small"]
        assert given["calibration"].shape == (40, 3, 8, 8)
        assert {k: given[k] for k in ("flops", "heads", "method", "seed")} == {
            "flops": 1.2,
            "heads": "joint",
            "method": "permute",
            "seed": 7,
        }
        assert not {"width", "params", "latency", "widths", "classes"} & set(given)
        assert given["recipe"]["sources"] == ["nets.py:a", "nets.py:b"]
        assert (here / "o").is_dir()

    def test_calibration_for_each_source(
        self, run: Callable[..., Call], here: Path, merged: list[dict[str, Any]]
    ) -> None:
        """Given twice, it belongs to the sources in order."""
        np.save("other.npy", np.zeros((3, 28, 28), np.uint8))
        data = ["--calibration", "nets.py:data", "--calibration", "other.npy"]
        run("plan", "nets.py:a", "nets.py:b", *data, "--mean", "0.5", "--std", "0.25")
        (given,) = merged
        assert isinstance(given["calibration"], PerSource)
        assert torch.equal(given["calibration"].sources[1], torch.full((3, 1, 28, 28), -2.0))

    def test_without_data_there_is_a_note(
        self, run: Callable[..., Call], here: Path, merged: list[dict[str, Any]]
    ) -> None:
        """On stderr, and in the JSON document."""
        call = run("plan", "nets.py:a", "nets.py:b", "--input", "2,3,8,8", "--json")
        assert merged[0]["calibration"] is None
        assert merged[0]["example_inputs"][0].shape == (2, 3, 8, 8)
        assert "note: no calibration data" in call.err
        assert "no calibration data" in call.document["notes"][0]

    @pytest.mark.parametrize("command", ["merge", "plan"])
    def test_json_is_one_document(
        self, run: Callable[..., Call], here: Path, merged: list[dict[str, Any]], command: str
    ) -> None:
        """What a user's file prints goes to stderr, and NaN is null."""
        call = run(command, "nets.py:a", "nets.py:b", "--calibration", "nets.py:data", "--json")
        plan = call.document["plan"] if command == "merge" else call.document
        assert plan["groups"][0]["similarity"] is None
        assert "noise on stdout" in call.err

    def test_people_get_a_table(
        self, run: Callable[..., Call], here: Path, merged: list[dict[str, Any]]
    ) -> None:
        """Sizes, warnings and where the result lies."""
        call = run("merge", "nets.py:b", "nets.py:b", "--calibration", "nets.py:data")
        assert "1.50x, 1.20x" in call.out
        assert "warning: w" in call.out
        assert f"written to {Path('out') / 'merged'}" in call.out


RECIPE: dict[str, Any] = {
    "sources": ["nets.py:a", "nets.py:b"],
    "calibration": ["nets.py:data", "nets.py:data"],
    "normalise": {"mean": [0.1], "std": [0.2]},
    "input": [1, 3, 8, 8],
    "flops": 1,
    "heads": "joint",
    "classes": [["x", "y", "z"], ["z", "w"]],
    "method": "pleas",
    "seed": 3,
    "out": "from_recipe",
}


def written(path: Path, **changes: Any) -> Path:
    """The recipe, changed, as a file."""
    path.write_text(yaml.safe_dump({**RECIPE, **changes}))
    return path


class TestRecipes:
    """``merge recipe.yaml``."""

    def test_everything_in_it_is_used(
        self, run: Callable[..., Call], here: Path, merged: list[dict[str, Any]]
    ) -> None:
        """All keys of the schema reach the library."""
        call = run("merge", written(here / "r.yaml"))
        assert call.status == 0, call.err
        (given,) = merged
        assert isinstance(given["calibration"], PerSource)
        assert given["classes"] == (("x", "y", "z"), ("z", "w"))
        assert (given["flops"], given["heads"], given["seed"]) == (1.0, "joint", 3)
        assert given["recipe"]["normalise"] == {"mean": [0.1], "std": [0.2]}
        assert (here / "from_recipe").is_dir()

    def test_the_command_line_wins(
        self, run: Callable[..., Call], here: Path, merged: list[dict[str, Any]]
    ) -> None:
        """A budget there replaces the other budget of the recipe."""
        run("merge", written(here / "r.yaml"), "--width", "0.5", "--seed", "9", "--out", "o")
        assert merged[0]["width"] == 0.5
        assert "flops" not in merged[0]
        assert merged[0]["seed"] == 9

    def test_files_beside_the_recipe_are_found(
        self, here: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """From another folder; files of that folder come first."""
        path = written(here / "r.yaml", calibration="w.npz:key")
        (here / "w.npz").touch()
        elsewhere = tmp_path_factory.mktemp("elsewhere")
        monkeypatch.chdir(elsewhere)
        assert read(path).sources[0] == f"{here / 'nets.py'}:a"
        assert read(path).calibration == f"{here / 'w.npz'}:key"
        (elsewhere / "nets.py").touch()
        assert read(path).sources[0] == "nets.py:a"

    def test_what_is_recorded_reads_back(self, here: Path) -> None:
        """origin() and options() are the recipe again."""
        recipe = read(written(here / "r.yaml", widths={"0": 0.5, 1: 2}, flops=None, samples=5))
        recorded = {**recipe.options(), **recipe.origin()}
        recorded["classes"] = [list(own) for own in recorded["classes"]]
        (here / "again.yaml").write_text(yaml.safe_dump(recorded))
        again = read(here / "again.yaml")
        assert again.updated(Recipe(out=recipe.out)) == recipe
        assert again.widths == {0: 0.5, 1: 2.0}

    @pytest.mark.parametrize(
        ("changes", "word"),
        [
            ({"flop": 1}, "unknown key 'flop'"),
            ({"flops": "much"}, "flops: expected a number, not 'much'"),
            ({"flops": True}, "flops: expected a number"),
            ({"seed": 1.5}, "seed: expected a whole number"),
            ({"sources": "a"}, "sources: expected a list"),
            ({"sources": [1, 2]}, "sources: expected text"),
            ({"normalise": {"average": 1}}, "normalise: expected mean and std"),
            ({"classes": ["x"]}, "classes of source 0: expected a list"),
            ({"widths": [1]}, "widths: expected a width for each group"),
            ({"widths": {"a": 1}}, "groups are numbers"),
            ({"input": "1,3"}, "input: expected a list"),
            ({"heads": 1}, "heads: expected text"),
        ],
    )
    def test_mistakes_name_file_and_key(
        self, here: Path, changes: dict[str, Any], word: str
    ) -> None:
        """Types are checked before anything is loaded."""
        with pytest.raises(OptionError) as caught:
            read(written(here / "r.yaml", **changes))
        assert "r.yaml" in str(caught.value)
        assert word in str(caught.value)

    @pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2", "", "1: 2", "!!python/name:os.system"])
    def test_other_yaml(self, here: Path, text: str) -> None:
        """Broken, of another kind, empty, or asking for Python objects."""
        (here / "r.yaml").write_text(text)
        with pytest.raises(PleasError, match=r"r\.yaml"):
            read(here / "r.yaml")


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
        assert "fc.weight.1" in text

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
