"""Call the program in this process, on small networks, with or without the real library."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import pleas_fx.api as api
from pleas_fx import cli
from pleas_fx.ir import Count, GroupId, GroupPlan, Plan, Report

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

def labelled():
    return data(), labels()
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
