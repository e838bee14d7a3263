"""Tracing: what symbolic tracing can't follow is followed with the sizes of the example."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import pleas_fx as pf
from passes.lower import lower
from passes.trace import trace
from pleas_fx.errors import TraceError
from tests.attention_networks import LeafNet
from tests.computed_networks import SameNet
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


def numbered(_: nn.Module, x: Tensor) -> Tensor:
    """Functions of torch that take sizes, and where the result is to be, but no tensor."""
    steps = torch.arange(x.shape[-1], device=x.device) / torch.full((1,), x.shape[-1])
    mask = torch.ones(x.shape[0], 1, x.shape[-1], dtype=x.dtype, device=x.device)
    return x * (mask * steps).unsqueeze(1)


def placed(_: nn.Module, x: Tensor) -> Tensor:
    """Asks where its values are."""
    return x.relu() if x.device.type != "meta" else x


def checked(_: nn.Module, x: Tensor) -> Tensor:
    """Asks what its values are, as TorchScript is asked, too."""
    if not isinstance(x, Tensor) or not torch.jit.isinstance(x, Tensor):
        raise TypeError("no tensor")
    width = x.shape[-1]
    return x.relu() * (2 if isinstance(width, int) and len(x.shape) == 4 else width)


@pytest.mark.parametrize("between", [padded, listed, counted, numbered, placed, checked])
def test_control_flow_over_sizes_is_followed(between: Callable[..., Tensor]) -> None:
    """torch.fx alone refuses; the program computes the same and its groups are certified."""
    model = seeded(lambda: Controlled(between), 0)
    with pytest.raises(Exception, match=r"control flow|iterated|integer|len|argument|no tensor"):
        fx.symbolic_trace(model)
    program = trace(model, INPUTS)
    assert worst(outputs(program.module, INPUTS), outputs(model, INPUTS)) == 0.0
    certificate = pf.permutation_groups(model, INPUTS).certificate
    assert certificate.passed
    assert not certificate.culprits


def test_what_code_is_told_of_proxies_ends_with_the_trace() -> None:
    """Its files and torch are as they were."""
    before = torch.jit.isinstance
    trace(seeded(lambda: Controlled(checked), 0), INPUTS)
    assert "isinstance" not in globals()
    assert torch.jit.isinstance is before


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


def scaled_part(model: nn.Module, x: Tensor) -> Tensor:
    """A write to some channels of a copy that is used before, too."""
    y = x.clone()
    before = y.relu()
    y[:, 1:].mul_(model.scale[1:])
    return y + before


def scaled_window(_: nn.Module, x: Tensor) -> Tensor:
    """A slice of a slice."""
    y = x * 1.0
    rows = y[:, :, 1:-1]
    rows[:, :, :, 1:3].mul_(2.0)
    rows[:, :, :, :-1].add_(1.0)
    return y


def cleared(model: nn.Module, x: Tensor) -> Tensor:
    """A part of a parameter made zero, as Swin v2 does with its keys' bias."""
    scale = model.scale.clone()
    scale[scale.numel() // 3 : 4].zero_()
    scale[:1].fill_(0.5)
    return x * scale


def assigned(_: nn.Module, x: Tensor) -> Tensor:
    """Written into zeros that were made for it, and over what was there."""
    y = x.new_zeros(x.shape[0], x.shape[1], x.shape[2] + 2, x.shape[3])
    y[:, :, 1:-1] = x.relu()
    y[:, :, :1, 2:] = -1.0
    y[:, :, -1:].copy_(x[:, :, :1])
    return y


def stepped(_: nn.Module, x: Tensor) -> Tensor:
    """Every second row, of every third column from the second on."""
    y = x.clone()
    y[:, :, 1::2] = y[:, :, 1::2].sigmoid()
    y[:, :, :5, 1::3] *= 2.0
    return y


def bordered(_: nn.Module, x: Tensor) -> Tensor:
    """Written into the middle of zeros."""
    border = torch.zeros(x.shape[0], x.shape[1], x.shape[2] + 2, x.shape[3] + 2, dtype=x.dtype)
    border[:, :, 1:-1, 1:-1] = x
    return border


WRITES = [scaled_part, scaled_window, cleared, assigned, stepped, bordered]


@pytest.mark.parametrize("write", WRITES)
def test_writes_to_slices_are_followed(write: Callable[[nn.Module, Tensor], Tensor]) -> None:
    """To the bit, for any batch; such networks are analysed and merged like others."""
    model, other = (seeded(lambda: Controlled(write), seed).double() for seed in (0, 1))
    inputs = tuple(x.double() for x in INPUTS)
    program = trace(model, inputs)
    assert {str(n.target) for n in program.module.graph.nodes if n.op == "call_module"} >= {"last"}
    more = (torch.cat(inputs * 2),)
    assert worst(outputs(program.module, more), outputs(model, more)) == 0.0
    symmetry = pf.permutation_groups(model, inputs)
    assert symmetry.certificate.passed
    assert not symmetry.certificate.culprits
    assert "last.weight" in {axis.key for group in symmetry.groups for axis in group.axes}
    result = pf.merge([model, other], more[0], width=2.0, progress=False)
    wanted = outputs(model, inputs) + outputs(other, inputs)
    assert worst(outputs(result.model, inputs), wanted) < 1e-9


def test_what_is_copied_takes_the_type_of_its_place() -> None:
    """Whatever the type it comes with."""

    def copied(_: nn.Module, x: Tensor) -> Tensor:
        y = x.relu()
        y[:, :, :2].copy_(x.double()[:, :, :1])
        y[:, :, 2:].copy_(x[:, :, 2:], non_blocking=True)
        return y

    model = seeded(lambda: Controlled(copied), 0)
    (found,), (wanted,) = (outputs(m, INPUTS) for m in (trace(model, INPUTS).module, model))
    assert found.dtype == wanted.dtype
    assert found.equal(wanted)


def test_writes_through_other_views_are_noticed() -> None:
    """They are lost on a tracer's way, which a comparison with the model tells."""

    def written(_: nn.Module, x: Tensor) -> Tensor:
        y = x.clone()
        y.transpose(1, 2)[:, 1:].mul_(3.0)
        return y

    model = seeded(lambda: Controlled(written), 0)
    program = trace(model, INPUTS)
    assert worst(outputs(program.module, INPUTS), outputs(model, INPUTS)) < 1e-6


def test_graphs_that_compute_something_else_are_refused() -> None:
    """Better no program than a wrong one."""

    def random(_: nn.Module, x: Tensor) -> Tensor:
        return x * torch.rand_like(x)

    with pytest.raises(TraceError, match="doesn't compute what the model does"):
        trace(seeded(lambda: Controlled(random), 0), INPUTS)


def test_contents_of_tensors_decide_nothing() -> None:
    """A branch on values in the network itself is refused, with both reasons."""

    def decided(_: nn.Module, x: Tensor) -> Tensor:
        return x.relu() if x.mean() > 0 else x

    with pytest.raises(TraceError, match="nor with known sizes: control flow depends on the cont"):
        trace(Controlled(decided), INPUTS)


class Sorting(nn.Module):
    """A block that looks at values; ``inner`` is ordinary."""

    def __init__(self, inner: nn.Module, channels: int = 6) -> None:
        super().__init__()
        self.inner = inner
        self.gain = nn.Parameter(torch.rand(channels, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x) * self.gain
        return y.relu() if y.mean() > -100 else y


def opaque(depth: int) -> nn.Module:
    """Convolutions around a block that can't be followed, inside as many sequences."""
    block: nn.Module = Sorting(nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)))
    for _ in range(depth):
        block = nn.Sequential(block, nn.Conv2d(6, 6, 1))
    return nn.Sequential(nn.Conv2d(3, 6, 1), block, nn.Conv2d(6, 4, 1))


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_a_module_that_can_not_be_followed_becomes_a_leaf(depth: int) -> None:
    """Only the innermost one; the rest of the network is followed."""
    model = seeded(lambda: opaque(depth), 0)
    program = trace(model, INPUTS)
    calls = [type(program.module.get_submodule(str(n.target))) for n in program.module.graph.nodes
             if n.op == "call_module"]  # fmt: skip
    assert calls == [nn.Conv2d, Sorting, *[nn.Conv2d] * (depth + 1)]
    assert worst(outputs(program.module, INPUTS), outputs(model, INPUTS)) == 0.0


def test_channels_of_a_leaf_are_found_all_the_same() -> None:
    """Labels go through operators, whatever module runs them; the certificate vouches for it."""
    symmetry = pf.permutation_groups(seeded(lambda: opaque(1), 0), INPUTS)
    assert symmetry.certificate.passed
    assert not symmetry.certificate.culprits
    assert sorted(g.size for g in symmetry.groups) == [6, 6, 6]


def test_leaves_that_share_their_parameters_are_followed_elsewhere() -> None:
    """A parameter that an abandoned attempt had read is read again afterwards."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Sorting(nn.Conv2d(3, 3, 1), 3)
            self.last = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.block(x) * self.block.gain)

    model = seeded(Twice, 0)
    assert worst(outputs(trace(model, INPUTS).module, INPUTS), outputs(model, INPUTS)) == 0.0


def test_a_network_around_a_leaf_merges_exactly() -> None:
    """What is inside a leaf stays whole; nothing merged is still both networks."""
    a, b = (seeded(lambda: opaque(1), seed).double() for seed in (0, 1))
    inputs = (INPUTS[0].double(),)
    result = pf.merge([a, b], inputs[0].repeat(4, 1, 1, 1), width=2.0, progress=False)
    assert worst(outputs(result.model, inputs), outputs(a, inputs) + outputs(b, inputs)) < 1e-9


@pytest.mark.parametrize("sources", [2, 3])
def test_channels_inside_a_leaf_are_averaged_with_their_matches(sources: int) -> None:
    """No value shows them, and the leaf gives a tuple: weights alone say which belong together."""
    model, inputs = seeded(LeafNet, 0).double(), (INPUTS[0].double(),)
    symmetry = pf.permutation_groups(model, inputs)
    hidden = next(g for g in symmetry.groups if g.size == 11)
    assert {axis.key.rpartition(".")[0] for axis in hidden.axes} == {
        "inside.expand", "inside.contract",
    }  # fmt: skip
    copies = [symmetry.apply(model, symmetry.random(seed)) for seed in range(1, sources)]
    result = pf.merge(
        [model, *copies], inputs[0].repeat(4, 1, 1, 1), width=1.0, heads="shared", progress=False
    )
    assert worst(outputs(result.model, inputs), outputs(model, inputs)) < 1e-9


class Optional(nn.Module):
    """An input that may be left out, and control flow over whether it was."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor, mask: Tensor | None = None, power: int = 1) -> dict[str, Tensor]:
        y = self.first(x)
        if mask is not None:
            y = y * mask
        return {"logits": self.last(y**power), "features": y.mean((2, 3))}


@pytest.mark.parametrize("shapes", [[(2, 3, 9, 9)], [(2, 3, 9, 9), (2, 1, 9, 9)]])
def test_inputs_that_are_left_out_are_their_defaults(shapes: list[tuple[int, ...]]) -> None:
    """Symbolic tracing alone takes the branch of a mask that isn't there."""
    model, inputs = seeded(Optional, 0), noise(*shapes)
    program = trace(model, inputs)
    assert worst(outputs(program.module, inputs), outputs(model, inputs)) == 0.0
    assert pf.permutation_groups(model, inputs).certificate.passed


def test_the_model_is_left_alone() -> None:
    """Tracing with known sizes runs the layers, but on a copy and without modes left behind."""
    model = Controlled(padded).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trace(model, INPUTS)
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def clipped(x: Tensor) -> Tensor:
    """Written where a mask says so."""
    x = x * 1.0
    x[x > 1] = 1.0
    return x


def mapped(x: Tensor) -> Tensor:
    """One example at a time."""
    return torch.vmap(lambda one: one.relu() * 2)(x)


def branching(x: Tensor) -> Tensor:
    """Both branches are in the graph."""
    return torch.cond(x.sum() > 0, lambda t: t.relu(), lambda t: t.relu() + 1, (x,))


class Between(nn.Module):
    """Layers around a function, a result with names, and inputs that nobody gives."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.first, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.second, self.head = nn.Conv2d(6, 8, 3, stride=2), nn.Linear(8, 4)

    def forward(self, x: Tensor, *others: Tensor, **more: Tensor) -> dict[str, Tensor]:
        x = self.second(self.function(self.norm(self.first(x))))
        return {"map": x, "logits": self.head(x.mean((2, 3)))}


FOLLOWED_BY_EXPORT = [clipped, mapped]


@pytest.mark.parametrize("function", FOLLOWED_BY_EXPORT)
def test_what_tracers_can_not_follow_goes_through_torch_export(
    function: Callable[[Tensor], Tensor],
) -> None:
    """The graph has the model's layers and the nesting of its result, and takes any batch."""
    model = seeded(lambda: Between(function), 0)
    program = trace(model, INPUTS)
    layers = {str(n.target) for n in program.module.graph.nodes if n.op == "call_module"}
    assert layers == {"first", "norm", "second", "head"}
    for inputs in (INPUTS, noise((5, 3, 9, 9))):
        assert program.module(*inputs).keys() == {"map", "logits"}
        assert worst(outputs(program.module, inputs), outputs(model, inputs)) < 1e-6


@pytest.mark.parametrize("function", FOLLOWED_BY_EXPORT)
def test_exported_networks_are_analysed_and_merged(function: Callable[[Tensor], Tensor]) -> None:
    """Through the same rules; an operator without a rule freezes what it touches."""
    a, b = (seeded(lambda: Between(function), seed).double() for seed in (0, 1))
    inputs = (INPUTS[0].double(),)
    symmetry = pf.permutation_groups(a, inputs)
    assert symmetry.certificate.passed
    assert not symmetry.certificate.culprits
    movable = {axis.key for group in symmetry.groups for axis in group.axes}
    assert ("first.weight" in movable) == (function is not clipped)
    result = pf.merge([a, b], inputs[0].repeat(4, 1, 1, 1), width=2.0, progress=False)
    assert worst(outputs(result.model, inputs), outputs(a, inputs) + outputs(b, inputs)) < 1e-9


def test_graphs_in_a_graph_are_refused() -> None:
    """No rule looks into them."""
    with pytest.raises(TraceError, match="cond runs graphs of its own"):
        trace(seeded(lambda: Between(branching), 0), INPUTS)


def test_scripted_modules_are_refused_by_name() -> None:
    """They have no graph that could be rewritten."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), torch.jit.script(nn.ReLU()))
    with pytest.raises(TraceError, match="module 1 is TorchScript"):
        trace(model, INPUTS)


def test_sizes_of_parameters_become_numbers() -> None:
    """What only asks for a kernel's size doesn't keep the kernel in the graph, to be merged."""
    program = trace(SameNet().eval(), (torch.zeros(1, 3, 8, 8),))
    assert program.module.graph.find_nodes(op="get_attr")
    lowered = lower(program)
    assert not lowered.module.graph.find_nodes(op="get_attr")
    assert {n for n, p in lowered.module.named_parameters() if p.dim() == 4} == {
        *("stem.0.weight", "conv2d_layer.weight", "pointwise.0.weight", "conv2d_1_layer.weight")
    }


def test_what_parameters_hold_stays_theirs() -> None:
    """A scale that is read as a number differs between sources; only sizes don't."""
    program = trace(Scaled().eval(), (torch.zeros(1, 3),))
    assert lower(program).module.graph.find_nodes(op="get_attr")


class Scaled(nn.Module):
    """Takes a number out of a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.add(x, x, alpha=self.scale[0].item())
