"""Tracing: what symbolic tracing can't follow is followed with the sizes of the example."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import pleas_fx as pf
from passes.trace import trace
from pleas_fx.errors import TraceError
from tests.merging import outputs, worst
from tests.networks import noise
from tests.randomise import seeded

INPUTS = noise((2, 3, 9, 9))


class Controlled(nn.Module):
    """conv-norm, then something whose control flow depends on sizes, then conv."""

    def __init__(self, between: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6))
        self.last = nn.Conv2d(6, 4, 1)
        self.scale = nn.Parameter(torch.ones(6, 1, 1))
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self, self.first(x)))


def padded(_: nn.Module, x: Tensor) -> Tensor:
    """Padding to an even size, only where the size is odd."""
    height, width = x.shape[-2:]
    if height % 2 or width % 2:
        x = F.pad(x, (0, width % 2, 0, height % 2))
    return F.max_pool2d(x, 2)


def listed(_: nn.Module, x: Tensor) -> Tensor:
    """The parts of a chunk as a list that grows, as in YOLOv8."""
    parts = list(x.chunk(2, 1))
    parts.append(parts[-1].relu())
    return torch.cat(parts[1:], 1)


def counted(model: nn.Module, x: Tensor) -> Tensor:
    """A loop over a size, lengths, sizes as numbers, and a bare parameter."""
    for _ in range(x.shape[-1] // 4):
        x = x.relu() * model.scale
    kernel = math.ceil(int(x.size(2)) / 4) if len(x.shape) == 4 else 1
    return F.avg_pool2d(x, kernel)


@pytest.mark.parametrize("between", [padded, listed, counted])
def test_control_flow_over_sizes_is_followed(between: Callable[..., Tensor]) -> None:
    """torch.fx alone refuses; the program computes the same and its groups are certified."""
    model = seeded(lambda: Controlled(between), 0)
    with pytest.raises(Exception, match=r"control flow|iterated|integer|len"):
        fx.symbolic_trace(model)
    program = trace(model, INPUTS)
    assert worst(outputs(program.module, INPUTS), outputs(model, INPUTS)) == 0.0
    certificate = pf.permutation_groups(model, INPUTS).certificate
    assert certificate.passed
    assert not certificate.culprits


def test_the_batch_size_stays_open() -> None:
    """Sizes that only flow into operators aren't written into the graph."""
    model = seeded(lambda: Controlled(lambda _, x: padded(_, x.reshape(x.shape))), 0)
    other = noise((5, 3, 9, 9))
    program = trace(model, INPUTS)
    assert worst(outputs(program.module, other), outputs(model, other)) == 0.0


def test_networks_that_are_followed_merge_exactly() -> None:
    """The whole compiler on such a graph: nothing merged is both networks."""
    a, b = (seeded(lambda: Controlled(listed), seed).double() for seed in (0, 1))
    inputs = (INPUTS[0].double(),)
    result = pf.merge([a, b], inputs[0].repeat(4, 1, 1, 1), width=2.0, progress=False)
    assert worst(outputs(result.model, inputs), outputs(a, inputs) + outputs(b, inputs)) < 1e-9


def test_results_of_in_place_calls_need_no_name() -> None:
    """A statement that only writes in place looks dead to torch.fx, and isn't."""

    def scaled(model: nn.Module, x: Tensor) -> Tensor:
        y = x.relu()
        y.mul_(model.scale)
        F.hardtanh(y, inplace=True)
        return y

    model = seeded(lambda: Controlled(scaled), 0)
    program = trace(model, INPUTS)
    assert worst(outputs(program.module, INPUTS), outputs(model, INPUTS)) == 0.0


def test_graphs_that_compute_something_else_are_refused() -> None:
    """Writes through a view are lost on the way: better no program than a wrong one."""

    def written(_: nn.Module, x: Tensor) -> Tensor:
        y = x.clone()
        y[:, 1:].mul_(3.0)
        return y

    with pytest.raises(TraceError, match="doesn't compute what the model does"):
        trace(seeded(lambda: Controlled(written), 0), INPUTS)


def test_contents_of_tensors_decide_nothing() -> None:
    """A branch on values is refused, with both reasons."""

    def decided(_: nn.Module, x: Tensor) -> Tensor:
        return x.relu() if x.mean() > 0 else x

    with pytest.raises(TraceError, match="nor with known sizes: control flow depends on the cont"):
        trace(Controlled(decided), INPUTS)


def test_the_model_is_left_alone() -> None:
    """Tracing with known sizes runs the layers, but on a copy and without modes left behind."""
    model = Controlled(padded).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trace(model, INPUTS)
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
