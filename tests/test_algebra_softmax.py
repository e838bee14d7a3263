"""Logistic regression towards probabilities: at its minimum, and true to its prior."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pleas_fx.algebra.softmax import fit_answers

ROWS, INPUTS, CLASSES = 300, 7, 5
PENALTY = 1e-2


def normal(*shape: int, seed: int) -> Tensor:
    """Float64 noise."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.fixture
def z() -> Tensor:
    """Correlated inputs that aren't centred."""
    return normal(ROWS, INPUTS, seed=0) @ normal(INPUTS, INPUTS, seed=1) + 3


@pytest.fixture
def prior() -> tuple[Tensor, Tensor]:
    """Weight and bias."""
    return normal(CLASSES, INPUTS, seed=2), normal(CLASSES, seed=3)


def loss(z: Tensor, wanted: Tensor, weight: Tensor, bias: Tensor, prior: Tensor) -> Tensor:
    """The objective, as the module's docstring has it."""
    entropy = -(wanted * (z @ weight.T + bias).log_softmax(1)).sum(1).mean()
    change = (weight - prior) * z.std(0, unbiased=False)
    return entropy + PENALTY / 2 * change.square().sum()


def slope(z: Tensor, wanted: Tensor, weight: Tensor, bias: Tensor, prior: Tensor) -> float:
    """The largest entry of the objective's gradient."""
    free = weight.clone().requires_grad_(), bias.clone().requires_grad_()
    return max(float(g.abs().max()) for g in torch.autograd.grad(
        loss(z, wanted, *free, prior), free
    ))  # fmt: skip


def test_the_objective_is_at_its_minimum(z: Tensor, prior: tuple[Tensor, Tensor]) -> None:
    """No slope in the weights as they were given, though others are solved for; control: before."""
    wanted = normal(ROWS, CLASSES, seed=4).mul(3).softmax(1)
    found = fit_answers(z, wanted, *prior, PENALTY)
    assert slope(z, wanted, found.weight, found.bias, prior[0]) < 1e-4
    assert slope(z, wanted, *prior, prior[0]) > 1e-2


def test_probabilities_that_are_met_already_change_nothing(
    z: Tensor, prior: tuple[Tensor, Tensor]
) -> None:
    """To the bit, whatever the level of the logits; control: other probabilities."""
    weight, bias = prior
    wanted = (z @ weight.T + bias).softmax(1)
    found = fit_answers(z, wanted, weight, bias, PENALTY)
    assert torch.equal(found.weight, weight)
    assert torch.allclose(found.bias, bias, rtol=0, atol=1e-12)
    assert not torch.allclose(fit_answers(z, wanted.roll(1, 1), *prior, PENALTY).weight, weight)


def test_the_level_of_the_logits_stays_that_of_the_prior(
    z: Tensor, prior: tuple[Tensor, Tensor]
) -> None:
    """Softmax doesn't see it, but who reads the logits does."""
    weight, bias = prior
    found = fit_answers(z, normal(ROWS, CLASSES, seed=4).softmax(1), weight, bias + 7, PENALTY)
    level = (z @ found.weight.T + found.bias).mean()
    assert float(level) == pytest.approx(float((z @ weight.T + bias + 7).mean()), abs=1e-9)


def test_an_input_that_never_varies_keeps_its_weights(
    z: Tensor, prior: tuple[Tensor, Tensor]
) -> None:
    """Nothing says what it would do; the bias takes what it adds."""
    z[:, 2] = 5.0
    found = fit_answers(z, normal(ROWS, CLASSES, seed=4).softmax(1), *prior, PENALTY)
    assert torch.allclose(found.weight[:, 2], prior[0][:, 2], rtol=0, atol=1e-9)


def test_more_inputs_than_rows_are_held_by_the_prior(prior: tuple[Tensor, Tensor]) -> None:
    """Four rows: the weights change in the directions of the rows alone."""
    z = normal(4, INPUTS, seed=5)
    found = fit_answers(z, torch.eye(CLASSES, dtype=torch.float64)[:4], *prior, PENALTY)
    deviation = z.std(0, unbiased=False)
    change = (found.weight - prior[0]) * deviation  # in standardised inputs
    standard = (z - z.mean(0)) / deviation
    beside = change - change @ torch.linalg.pinv(standard) @ standard
    assert float(beside.norm()) < 1e-6 * float(change.norm())
    assert float(change.norm()) > 1
