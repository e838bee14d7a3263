"""A Python file with networks, and what loading from files should come to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
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
