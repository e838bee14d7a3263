"""The command line: what it prints where, what it exits with, and what it hands to the library."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pleas_fx.api as api
from pleas_fx.calibration import PerSource
from pleas_fx.errors import BudgetError, SourceError
from tests import command_line
from tests.command_line import Call

run, here, merged = command_line.run, command_line.here, command_line.merged

COMMANDS = ("groups", "plan", "merge", "evaluate", "export", "demo")


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

        monkeypatch.setattr(api, "analyse", fails)
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
