"""Outputs that are classes are fitted to be answered as the sources answer; others aren't."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import pleas_fx as pf
from fixtures.load import calibration, sources, test_set
from passes import _answers, fit
from passes._answers import WEIGHT, _logs, _unseen, classifies
from pleas_fx.algebra.ridge import Gram, solve
from pleas_fx.algebra.softmax import fit_answers
from tests.merging import of_images

IMAGES, CLASSES = 400, 10


def drawn(seed: int) -> Tensor:
    """Noise (images, classes)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(IMAGES, CLASSES, generator=generator)


def of_classes() -> Tensor:
    """Logits as a cross entropy makes them: one stands out, the mean is zero."""
    chosen = torch.eye(CLASSES)[torch.arange(IMAGES) % CLASSES]
    logits = drawn(0) + 5 * chosen
    return logits - logits.mean(1, keepdim=True)


def without_others() -> Tensor:
    """The same, of a source that lacks half the classes."""
    logits = of_classes()
    logits[:, 5:] = -torch.inf
    return logits


NO_CLASSES: dict[str, Callable[[], Tensor]] = {
    "places in an image": lambda: 100 + 50 * drawn(1),
    "shares": lambda: drawn(2).sigmoid(),
    "several labels an image": lambda: 3 * drawn(3) - 6,
    "values around zero": lambda: 0.5 * drawn(4),
    "always the same": lambda: of_classes() + 20 * torch.eye(CLASSES)[0],
    "a single number": lambda: drawn(5)[:, :1],
    "nothing": lambda: drawn(6)[:0],
}


@pytest.mark.parametrize("make", [of_classes, without_others])
def test_logits_of_classes_are_recognised(make: Callable[[], Tensor]) -> None:
    """Also where a source lacks some."""
    assert classifies(make().double())


@pytest.mark.parametrize("kind", NO_CLASSES)
def test_other_outputs_are_not_taken_for_classes(kind: str) -> None:
    """A softmax over them would mean nothing."""
    assert not classifies(NO_CLASSES[kind]().double())


def merged(models: list[nn.Module], count: int = 320, **options: object) -> pf.MergeResult:
    """At half of one network's FLOPs, without contest: the same plan however outputs are fitted."""
    data = pf.PerSource([own[:count] for own in calibration()])
    return pf.merge(models, data, flops=0.5, trials=0, progress=False, **options)  # type: ignore[arg-type]


def divergence(result: pf.MergeResult) -> float:
    """Of the answers' probabilities from the sources', on test images."""
    images = test_set()[0][:1000]
    own_outputs = (of_images(model, images)[0] for model in sources())
    pairs = zip(of_images(result.model, images), own_outputs, strict=True)
    logs = [(own.log_softmax(1), found.log_softmax(1)) for found, own in pairs]
    return float(sum((own.exp() * (own - found)).sum(1).mean() for own, found in logs))


def heads_of(result: pf.MergeResult) -> list[str]:
    """How the last layers were fitted."""
    return [layer.status for layer in result.report.layers if layer.name.startswith("fc")]


def test_own_heads_answer_more_as_their_sources_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """On images that nothing was fitted to; control: least squares alone."""
    answered = merged(list(sources()))
    monkeypatch.setattr("passes.fit.answer", lambda *_: {})
    plain = merged(list(sources()))
    assert heads_of(answered) == ["answers"] * 2
    assert "answers" not in heads_of(plain)
    assert divergence(answered) < 0.95 * divergence(plain)


def test_values_are_fitted_by_least_squares_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same networks with outputs far from zero: to the bit what least squares gives."""
    shifted = [copy.deepcopy(model) for model in sources()]
    with torch.no_grad():
        for model in shifted:
            model.fc.bias += 1000  # type: ignore[operator,union-attr]
    found = merged(shifted)
    monkeypatch.setattr("passes.fit.answer", lambda *_: {})
    plain = merged(shifted)
    assert "answers" not in heads_of(found)
    for key, tensor in plain.model.state_dict().items():
        assert torch.equal(found.model.state_dict()[key], tensor)


class Probabilities(nn.Module):
    """A network that ends in a softmax."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Probabilities of the classes."""
        return torch.softmax(self.network(x), 1)


def test_layers_behind_which_something_follows_stay_as_they_are() -> None:
    """What is seen isn't what the layer makes; control: the network without it."""
    result = merged([Probabilities(model) for model in sources()], 64)
    assert all(layer.status != "answers" for layer in result.report.layers)
    assert "answers" in heads_of(merged(list(sources()), 64))


def test_what_is_left_of_answers_is_that_of_unseen_images() -> None:
    """Answers that no feature tells: fitted images seem to be explained, others aren't."""
    rng = torch.Generator().manual_seed(0)
    z, logits = torch.randn(60, 40, generator=rng), 8 * torch.randn(60, 5, generator=rng)
    wanted, start = logits.double().softmax(1), (torch.zeros(5, 40), torch.zeros(5))

    def left(made: torch.Tensor) -> float:
        none = _answers.divergence(wanted, wanted.mean(0).log())
        return float(_answers.divergence(wanted, made) / none)

    seen = _logs(z, fit_answers(z, wanted, *start, WEIGHT / 60))
    assert left(seen) < 0.3
    assert left(_unseen(z, wanted, start, 2)) > 1


def test_what_least_squares_leave_of_unseen_rows_is_estimated() -> None:
    """From the rows and the unknowns; the control, the fitted rows' own residual, is too low."""
    rng = torch.Generator().manual_seed(0)
    z, weight = torch.randn(4000, 150, generator=rng), torch.randn(30, 150, generator=rng)
    t = z @ weight.T + 12 * torch.randn(4000, 30, generator=rng)  # half of it noise
    gram = Gram.zeros(150, 30, (), torch.device("cpu"))
    gram.add(z[:300], t[:300])
    found = solve(gram, torch.zeros(30, 150), torch.zeros(30), 1e-6)
    made = z[300:].double() @ found.weight.T + found.bias
    error, signal = (t[300:] - made).square().sum(), (t[300:] - t[300:].mean(0)).square().sum()
    unseen = float(error / signal)
    assert found.residual < 0.6 * unseen
    assert fit._unseen(found.residual, found) == pytest.approx(unseen, rel=0.1)
    few = replace(found, rows=150)
    assert fit._unseen(found.residual, few) == 1.0
