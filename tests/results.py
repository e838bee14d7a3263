"""A merge result built by hand, so that tests of artefacts and reports need no compiler."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from passes.export import Parity
from pleas_fx import artefact
from pleas_fx.ir import (
    Axis,
    Certificate,
    Count,
    Frozen,
    Group,
    GroupId,
    GroupPlan,
    Lane,
    LayerFit,
    Membership,
    Plan,
    Report,
    Symmetry,
)
from pleas_fx.result import MergeResult
from tests.networks import noise
from tests.randomise import seeded

NAN = float("nan")


class Merged(nn.Module):
    """A small network of two heads with a nested layer, a bare parameter and a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6))
        self.scale = nn.Parameter(torch.ones(6, 1, 1))
        self.left = nn.Conv2d(6, 4, 1)
        self.right = nn.Conv2d(6, 4, 1)
        self.right.weight = self.left.weight
        self.register_buffer("shift", torch.full((4,), 0.25), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.stem(x)) * self.scale
        a, b = self.left(x).mean((2, 3)), self.right(x).mean((2, 3))
        return a + self.shift, torch.cat([b, a.narrow(1, 0, 1)], 1)


def lane(membership: int, *rows: tuple[int, int]) -> Lane:
    """A lane of two sources."""
    channels = np.array(rows, dtype=np.int64).reshape(len(rows), 2)
    return Lane(Membership(membership), channels)


def symmetry() -> Symmetry:
    """Two groups, one frozen axis, a certificate that passed."""
    axes = (Axis("stem.0.weight", 0), Axis("left.weight", 1), Axis("right.weight", 1))
    return Symmetry(
        groups=(Group(GroupId(0), 4, axes, None), Group(GroupId(1), 3, (), None)),
        frozen=(Frozen(Axis("left.weight", 0), "output", "order of the network's outputs"),),
        certificate=Certificate(2.5e-15, 3, 0.875, True, True),
    )


def plan() -> Plan:
    """One group partly merged, one wholly merged whose similarity isn't known."""
    half = (lane(3, (0, 1), (1, 0)), lane(1, (2, -1)), lane(2, (-1, 2), (-1, 3)))
    whole = (lane(3, (0, 0), (1, 1), (2, 2)),)
    groups = (
        GroupPlan(GroupId(0), 4, half, 0.91, 0.0125, 2),
        GroupPlan(GroupId(1), 3, whole, NAN, NAN, 2),
    )
    return Plan(groups, 2, 0.02, "g1 stays whole")


def report() -> Report:
    """Two layers, one of them not fitted."""
    layers = (
        LayerFit("stem.0", 0.0123, 4608, 27, 310.0, 27),
        LayerFit("left", NAN, 0, 6, NAN, 0),
    )
    sources = (Count(1000, 2_000_000), Count(1000, 2_000_000))
    seconds = {"trace": 0.02, "fit": 1.5}
    return Report(layers, sources, Count(1200, 2_200_000), seconds, 4096, ("few images",))


def result(model: nn.Module | None = None, **changes: object) -> MergeResult:
    """A result whose network is ``model`` (two outputs), traced unless it is a graph."""
    network = seeded(Merged, 0) if model is None else model
    traced = network if isinstance(network, fx.GraphModule) else fx.symbolic_trace(network).eval()
    made = MergeResult(
        model=traced,
        plan=plan(),
        report=report(),
        symmetry=symmetry(),
        inputs=noise((2, 3, 8, 8)),
        output_names=("output_a", "output_b"),
        recipe={"models": ["a.pt", "b.pt"], "method": "pleas", "width": 1.2, "seed": 0},
    )
    return replace(made, **changes)  # type: ignore[arg-type]


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


def without_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    """Artefacts get a few bytes in place of a real ONNX file, which takes seconds to write."""

    def export(*args: Any, **_: object) -> Parity:
        Path(args[2]).write_bytes(b"onnx")
        return Parity(1e-7, (("output_a", 1e-7), ("output_b", NAN)), (2, 3), "none")

    monkeypatch.setattr(artefact, "export_onnx", export)
