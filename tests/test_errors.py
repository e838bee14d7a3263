"""Bad input: one line of our own error type that names the culprit, nothing changed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import pleas_fx as pf
from passes.rewrite import Mismatch
from pleas_fx import prepare
from tests.attention_networks import MaskedNet
from tests.merging import clone
from tests.networks import NETWORKS

NETWORK = NETWORKS["narrow_resnet"]


def good() -> Tensor:
    """Sound calibration data."""
    return NETWORK.batch(8, seed=1)[0]


def pair() -> list[nn.Module]:
    """Two sound sources."""
    return [NETWORK.make(0), NETWORK.make(1)]


def with_last(outputs: int) -> nn.Module:
    """A source with another number of outputs."""
    model = NETWORK.make(1)
    name, last = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)][-1]
    model.set_submodule(name, nn.Linear(last.in_features, outputs))
    return model


class Branching(nn.Module):
    """Can't be traced: control flow depends on values."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x - 1


def poisoned(value: float) -> Tensor:
    """Calibration data with one bad entry."""
    data = good()
    data[3, 0, 1, 1] = value
    return data


def bad_weights(value: float) -> list[nn.Module]:
    """A source with such an entry in a weight."""
    models = pair()
    with torch.no_grad():
        next(models[1].parameters()).view(-1)[0] = value
    return models


def masked(change: Callable[[Tensor], object]) -> Callable[[], object]:
    """A merge where something happened to the second source's infinite mask."""
    models = [MaskedNet().eval() for _ in range(2)]
    change(models[1].mask)
    return lambda: pf.merge(models, good(), progress=False)


class Looked(nn.Module):
    """A network that reorders positions by a table of integers."""

    order: Tensor

    def __init__(self, order: list[int]) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 4, 1)
        self.register_buffer("order", torch.tensor(order))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.conv(x)[:, :, self.order]).mean((2, 3))


def looked(*orders: list[int]) -> Callable[[], object]:
    """A merge of networks with these tables."""
    return lambda: pf.merge([Looked(o) for o in orders], good(), width=1.0, progress=False)


def linear(kind: str) -> nn.Module:
    """A network whose last layer is dynamically quantised, traced, or has no values yet."""
    last = nn.LazyLinear(4) if kind == "lazy" else nn.Linear(6, 4)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), last).eval()
    if kind == "traced":
        return torch.jit.trace(model, good()[:2])  # type: ignore[no-any-return]
    return torch.ao.quantization.quantize_dynamic(model) if kind == "quantised" else model


def of_linear(kind: str) -> Callable[[], object]:
    """A merge of two of these."""
    return lambda: pf.merge([linear(kind), linear(kind)], good(), progress=False)


def test_equal_tables_are_no_difference() -> None:
    """Tables of integers say what moves where; equal ones say the same."""
    looked([3, 1, 2], [3, 1, 2])()


def data_only(data: object) -> Callable[[], object]:
    """A merge of sound models on some data."""
    return lambda: pf.merge(pair(), data, width=1.0, progress=False)


def budget(**options: object) -> Callable[[], object]:
    """A merge of sound models and data with some options."""
    return lambda: pf.merge(pair(), good(), progress=False, **options)  # type: ignore[arg-type]


CASES: dict[str, tuple[Callable[[], object], type[pf.PleasError], str]] = {
    "different architectures": (
        lambda: pf.merge([NETWORK.make(0), NETWORKS["prelu"].make(0)], good(), progress=False),
        pf.IncompatibleModelsError,
        "source 1 differs from source 0",
    ),
    "outputs that differ with a shared head": (
        lambda: pf.merge([NETWORK.make(0), with_last(9)], good(), heads="shared", progress=False),
        pf.IncompatibleModelsError,
        "shape",
    ),
    "tables of integers with other entries": (
        looked([3, 1, 2], [3, 2, 1]),
        pf.IncompatibleModelsError,
        "a table of integers has other entries",
    ),
    "empty data": (data_only(good()[:0]), pf.CalibrationError, "empty"),
    "no batches": (data_only([]), pf.CalibrationError, "empty"),
    "a quantised model": (of_linear("quantised"), pf.TraceError, "quantised"),
    "a traced model": (of_linear("traced"), pf.TraceError, "TorchScript"),
    "a model without values": (
        lambda: pf.merge([NETWORK.make(0).to("meta"), NETWORK.make(1)], good(), progress=False),
        pf.SourceError,
        "meta",
    ),
    "a lazy model": (of_linear("lazy"), pf.SourceError, "lazy"),
    "FLOPs of a network without any": (
        lambda: pf.merge([nn.ReLU(), nn.ReLU()], good(), flops=1.0, progress=False),
        pf.BudgetError,
        "give a width",
    ),
    "integer data": (data_only((good() * 50).byte()), pf.CalibrationError, "uint8"),
    "mis-shaped data": (data_only(good()[:, :1]), pf.TraceError, "channels"),
    "shapes that differ between batches": (
        data_only([good(), good()[:, :, :5]]),
        pf.CalibrationError,
        "batch 1",
    ),
    "NaN in the data": (data_only(poisoned(float("nan"))), pf.CalibrationError, "NaN"),
    "Inf in the data": (data_only(poisoned(float("inf"))), pf.CalibrationError, "Inf"),
    "NaN in a weight": (
        lambda: pf.merge(bad_weights(float("nan")), good(), progress=False),
        pf.SourceError,
        "source 1",
    ),
    "Inf in a weight": (
        lambda: pf.merge(bad_weights(float("inf")), good(), progress=False),
        pf.SourceError,
        "source 1",
    ),
    "NaN in a mask": (masked(lambda mask: mask.fill_(float("nan"))), pf.SourceError, "mask"),
    "a mask that is infinite elsewhere": (
        masked(lambda mask: mask.tril_()),
        pf.SourceError,
        "mask is infinite elsewhere",
    ),
    "width zero": (budget(width=0.0), pf.BudgetError, "above 0"),
    "width above the number of models": (budget(width=2.5), pf.BudgetError, "at most 2"),
    "negative FLOPs": (budget(flops=-1.0), pf.BudgetError, "positive"),
    "FLOPs that nothing meets": (budget(flops=1e-5), pf.BudgetError, "feasible from"),
    "parameters that nothing meets": (budget(params=1e-5), pf.BudgetError, "feasible from"),
    "average at another width": (
        budget(width=1.5, method="average"),
        pf.BudgetError,
        "width is 1",
    ),
    "the published method below one": (
        budget(width=0.5, method="pleas-paper"),
        pf.BudgetError,
        "widths from 1",
    ),
    "two budgets": (budget(width=1.0, flops=1.0), pf.OptionError, "exactly one"),
    "unknown heads": (budget(heads="both"), pf.OptionError, "heads"),
    "unknown method": (budget(method="magic"), pf.OptionError, "method"),
    "classes that don't fit": (
        budget(heads="joint", classes=[["a"], ["b"]]),
        pf.OptionError,
        "classes",
    ),
    "one model": (
        lambda: pf.merge([NETWORK.make(0)], good(), progress=False),
        pf.OptionError,
        "at least two",
    ),
    "not a model": (
        lambda: pf.merge([NETWORK.make(0), "resnet"], good(), progress=False),  # type: ignore[list-item]
        pf.OptionError,
        "torch.nn.Module",
    ),
    "untraceable model": (
        lambda: pf.merge([Branching(), Branching()], good(), progress=False),
        pf.TraceError,
        "Branching",
    ),
    "no data and no example": (
        lambda: pf.merge(pair(), None, progress=False),
        pf.OptionError,
        "example_inputs",
    ),
}


@pytest.mark.filterwarnings("ignore")  # what torch advises against
@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_clear_line(case: str) -> None:
    """The right type, one line, and the culprit in it."""
    call, kind, words = CASES[case]
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert words in message
    assert "\n" not in message


def test_a_place_that_cannot_be_rewritten_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal that whole groups don't settle reaches the user as our own error."""

    def refuse(*_: object, **__: object) -> None:
        raise Mismatch((), "layer_3", "an operator needs all channels")

    monkeypatch.setattr(prepare, "probe", refuse)
    with pytest.raises(pf.GraphError, match="layer_3 can't be rewritten"):
        pf.merge(pair(), good(), width=1.0, progress=False)


def test_sound_input_raises_nothing() -> None:
    """The control for all cases above."""
    result = pf.merge(pair(), good(), width=1.0, progress=False)
    assert isinstance(result, pf.MergeResult)


def test_a_failed_merge_leaves_the_sources_alone() -> None:
    """Nothing changes when calibration data turn out bad in the middle."""
    models = pair()
    before = [clone(m) for m in models]
    with pytest.raises(pf.CalibrationError):
        pf.merge(models, [good(), poisoned(float("nan"))], width=1.0, progress=False)
    for model, held in zip(models, before, strict=True):
        assert all(torch.equal(held[k], v) for k, v in model.state_dict().items())
