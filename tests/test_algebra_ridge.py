"""Ridge regression towards a prior, against numpy.linalg.lstsq on the rows themselves."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from pleas_fx.algebra.ridge import (
    ChannelGram,
    Gram,
    Solution,
    per_channel,
    solve,
    solve_dual,
)

ROWS, INPUTS, OUTPUTS = 90, 7, 3
RIDGE = 1e-2
# Normal equations square the inputs' condition; the mixing matrices below keep it under 100.
CONDITION = 100.0
TIGHT = ROWS * torch.finfo(torch.float64).eps * CONDITION**2


@dataclass(frozen=True)
class Case:
    """A regression and a prior, all float64."""

    z: Tensor  # (rows, inputs)
    t: Tensor  # (rows, outputs)
    prior: Tensor
    prior_bias: Tensor

    @property
    def gram(self) -> Gram:
        """Sums over all rows."""
        gram = Gram.zeros(self.z.shape[1], self.t.shape[1])
        gram.add(self.z, self.t)
        return gram

    def errors(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Mean squared residual of every output, computed on the rows."""
        return (self.z @ weight.T + bias - self.t).square().mean(0)


def case(seed: int = 0, rows: int = ROWS, inputs: int = INPUTS) -> Case:
    """Correlated inputs with a mean, targets that no weights fit exactly, an unrelated prior."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    left, _, right = torch.linalg.svd(normal(inputs, inputs))
    scales = torch.logspace(0, 1, inputs, dtype=torch.float64)
    z = normal(rows, inputs) @ (left * scales @ right) + 3 * normal(inputs)
    t = z @ normal(inputs, OUTPUTS) + 5 * normal(rows, OUTPUTS) + 7 * normal(OUTPUTS)
    return Case(z, t, normal(OUTPUTS, inputs), normal(OUTPUTS))


def lstsq(z: Tensor, t: Tensor) -> Tensor:
    """(outputs, inputs): least squares as numpy solves it, of minimal norm."""
    return torch.from_numpy(np.linalg.lstsq(z.numpy(), t.numpy(), rcond=1e-12)[0].T)


def with_ones(z: Tensor) -> Tensor:
    """The inputs and a column that the intercept multiplies."""
    return torch.cat([z, torch.ones(len(z), 1, dtype=z.dtype)], 1)


def penalised(given: Case, ridge: float) -> tuple[Tensor, Tensor]:
    """Weight and bias from lstsq of the rows with one more row for every penalised weight."""
    rows, inputs = given.z.shape
    level = given.z.var(0, unbiased=False).mean()
    extra = (rows * ridge * level).sqrt() * torch.eye(inputs, inputs + 1, dtype=torch.float64)
    left = torch.cat([with_ones(given.z), extra])
    right = torch.cat([given.t, extra[:, :-1] @ given.prior.T])
    found = lstsq(left, right)
    return found[:, :-1], found[:, -1]


def distance(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the largest entry."""
    return float((a - b).abs().max() / b.abs().max())


def objective(given: Case, found: tuple[Tensor, Tensor], ridge: float) -> float:
    """What the solution is to minimise, computed on the rows."""
    weight, bias = found
    level = given.z.var(0, unbiased=False).mean()
    penalty = ridge * level * (weight - given.prior).square().sum()
    return float(given.errors(weight, bias).sum() + penalty)


def test_without_ridge_it_is_lstsq() -> None:
    """λ = 0 gives the least-squares weights and intercept, whatever the prior (oracle 5)."""
    given = case()
    found = solve(given.gram, given.prior, given.prior_bias, 0.0)
    expected = lstsq(with_ones(given.z), given.t)
    assert distance(found.weight, expected[:, :-1]) < TIGHT
    assert distance(found.bias, expected[:, -1]) < TIGHT
    assert (found.status, found.rank, found.rows) == ("cholesky", INPUTS, ROWS)


def test_a_small_ridge_is_not_lstsq() -> None:
    """Negative control: the comparison notices a ridge of one in ten thousand."""
    given = case()
    found = solve(given.gram, given.prior, given.prior_bias, 1e-4)
    assert distance(found.weight, lstsq(with_ones(given.z), given.t)[:, :-1]) > 1e4 * TIGHT


@pytest.mark.parametrize("ridge", [1e-6, RIDGE, 10.0])
def test_with_a_prior_it_is_lstsq_of_the_augmented_system(ridge: float) -> None:
    """The penalty acts like extra rows that ask for the prior; the intercept is free."""
    given = case()
    found = solve(given.gram, given.prior, given.prior_bias, ridge)
    weight, bias = penalised(given, ridge)
    assert distance(found.weight, weight) < TIGHT
    assert distance(found.bias, bias) < TIGHT


def test_the_prior_is_not_zero() -> None:
    """Negative control: shrinking towards zero instead gives other weights."""
    given = case()
    found = solve(given.gram, torch.zeros_like(given.prior), given.prior_bias, RIDGE)
    assert distance(found.weight, penalised(given, RIDGE)[0]) > 1e4 * TIGHT


def test_a_huge_ridge_returns_the_prior() -> None:
    """As λ grows the weights go to the prior, while the intercept still fits the mean."""
    given = case()
    found = solve(given.gram, given.prior, given.prior_bias, 1e12)
    assert distance(found.weight, given.prior) < 1e-9
    gap = (given.z @ found.weight.T + found.bias - given.t).mean(0)
    assert float(gap.abs().max()) < TIGHT * float(given.t.abs().max())


@pytest.mark.parametrize("ridge", [0.0, RIDGE])
def test_no_other_weights_do_better(ridge: float) -> None:
    """Oracle 5: random weights, small steps away, and the prior have a larger objective."""
    given = case()
    found = solve(given.gram, given.prior, given.prior_bias, ridge)
    own = objective(given, (found.weight, found.bias), ridge)
    generator = torch.Generator().manual_seed(1)
    others = [(given.prior, found.bias), (given.prior, given.prior_bias)]
    for scale in (1e-4, 1e-2, 1.0):
        for _ in range(20):
            step = scale * torch.randn(found.weight.shape, dtype=torch.float64, generator=generator)
            shift = scale * torch.randn(OUTPUTS, dtype=torch.float64, generator=generator)
            others.append((found.weight + step, found.bias + shift))
    assert own < min(objective(given, other, ridge) for other in others)


def test_the_prior_does_not_minimise() -> None:
    """Negative control: the same comparison fails for weights that are not the solution."""
    given = case()
    found = solve(given.gram, given.prior, given.prior_bias, 0.0)
    prior = objective(given, (given.prior, given.prior_bias), 0.0)
    assert prior > 2 * objective(given, (found.weight, found.bias), 0.0)


@pytest.mark.parametrize("ridge", [0.0, RIDGE])
def test_the_intercept_is_exact(ridge: float) -> None:
    """Residuals have mean zero: the bias isn't penalised."""
    given = case()
    found = solve(given.gram, given.prior, given.prior_bias, ridge)
    gap = (given.z @ found.weight.T + found.bias - given.t).mean(0)
    assert float(gap.abs().max()) < TIGHT
    assert float((found.bias - given.prior_bias).abs().max()) > 0.1


def test_without_an_intercept_the_bias_stays() -> None:
    """The bias is the prior's, and the weights are those of lstsq for what it leaves."""
    given = case()
    found = solve(given.gram, given.prior, given.prior_bias, 0.0, intercept=False)
    assert torch.equal(found.bias, given.prior_bias)
    expected = lstsq(given.z, given.t - given.prior_bias)
    assert distance(found.weight, expected) < TIGHT
    assert distance(expected, lstsq(given.z, given.t)) > 1e-3  # the bias matters


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("ridge", [0.0, RIDGE])
def test_the_reported_residual_is_the_residual(ridge: float, intercept: bool) -> None:
    """Mean squared residual and its share of the variance, as computed on the rows."""
    given = case()
    found = solve(given.gram, given.prior, given.prior_bias, ridge, intercept=intercept)
    direct, variance = given.errors(found.weight, found.bias), given.t.var(0, unbiased=False)
    assert distance(found.unexplained, direct) < TIGHT
    assert distance(found.variance, variance) < TIGHT
    assert found.residual == pytest.approx(float(direct.sum() / variance.sum()), rel=TIGHT)
    assert distance(found.residuals, direct / variance) < TIGHT
    assert distance(found.unexplained, given.errors(found.weight + 1e-3, found.bias)) > 1e-6


def test_exact_targets_leave_nothing() -> None:
    """Targets that are a linear function of the inputs have residual zero, never below."""
    given = case()
    exact = Case(given.z, given.z @ given.prior.T + 4.0, given.prior * 0, given.prior_bias)
    found = solve(exact.gram, exact.prior, exact.prior_bias, 0.0)
    assert 0 <= found.residual < TIGHT
    assert distance(found.weight, given.prior) < TIGHT


@pytest.mark.parametrize(("offset", "status"), [(0.0, "prior"), (0.03, "cholesky")])
def test_rounding_is_not_fitted(offset: float, status: str) -> None:
    """A prior that leaves noise, but nothing that weights could explain, is kept to the bit."""
    generator = torch.Generator().manual_seed(0)
    z, noise = torch.randn(4096, 9, generator=generator), torch.randn(4096, 3, generator=generator)
    prior = torch.randn(3, 9, generator=generator)
    gram = Gram.zeros(9, 3)
    gram.add(z, z @ (prior + offset).T + 0.01 * noise)
    found = solve(gram, prior, torch.zeros(3), 0.0)
    assert found.status == status
    assert torch.equal(found.weight, prior.double()) == (status == "prior")
    assert found.residual > 1e-6


def test_no_rows_give_the_prior() -> None:
    """Without any rows, weight and bias are the prior's, and the residual is unknown."""
    given = case()
    for ridge in (0.0, RIDGE):
        found = solve(Gram.zeros(INPUTS, OUTPUTS), given.prior, given.prior_bias, ridge)
        assert torch.equal(found.weight, given.prior)
        assert torch.equal(found.bias, given.prior_bias)
        assert (found.rows, found.rank, found.status) == (0, 0, "empty")
        assert np.isnan(found.residual)
    dual = solve_dual(given.z[:0], given.t[:0], given.prior, given.prior_bias, RIDGE)
    assert torch.equal(dual.bias, given.prior_bias)


# -- fewer directions than inputs ---------------------------------------------------------------


def deficient(rank: int = 4) -> Case:
    """Inputs that span ``rank`` of their dimensions."""
    given, basis = case(), case(5, rows=INPUTS).z[:, :rank]
    return Case(given.z @ basis @ basis.T, given.t, given.prior, given.prior_bias)


def test_dependent_inputs_are_solved_and_their_rank_is_reported() -> None:
    """Residuals equal those of lstsq; the rank is that of the inputs."""
    given = deficient(4)
    found = solve(given.gram, given.prior, given.prior_bias, 0.0)
    best = given.errors(*_split(lstsq(with_ones(given.z), given.t)))
    assert (found.rank, found.status) == (4, "truncated")
    assert np.isfinite(found.condition)
    assert distance(given.errors(found.weight, found.bias), best) < 1e-8


def test_undetermined_directions_keep_the_prior() -> None:
    """Of all minimisers it is the one nearest to the prior."""
    given = deficient(4)
    found = solve(given.gram, given.prior, given.prior_bias, 0.0)
    centred = given.z - given.z.mean(0)
    step = lstsq(centred, given.t - given.t.mean(0) - centred @ given.prior.T)
    assert distance(found.weight, given.prior + step) < 1e-7
    zero = solve(given.gram, torch.zeros_like(given.prior), given.prior_bias, 0.0)
    assert distance(found.weight, zero.weight) > 1e-2  # the control: another prior, another answer


def test_a_ridge_restores_full_rank() -> None:
    """The damped system has full rank, and its solution is that of the augmented rows."""
    given = deficient(4)
    found = solve(given.gram, given.prior, given.prior_bias, RIDGE)
    assert (found.rank, found.status) == (INPUTS, "cholesky")
    assert distance(found.weight, penalised(given, RIDGE)[0]) < TIGHT / RIDGE


def test_a_constant_input_keeps_its_prior_weight() -> None:
    """A dead column determines nothing; the others are solved as if it weren't there."""
    given = case()
    z = given.z.clone()
    z[:, 2] = 2.5
    dead = Case(z, given.t, given.prior, given.prior_bias)
    found = solve(dead.gram, dead.prior, dead.prior_bias, 0.0)
    assert found.rank == INPUTS - 1
    assert distance(found.weight[:, 2], given.prior[:, 2]) < TIGHT
    alive = [0, 1, 3, 4, 5, 6]
    assert distance(found.weight[:, alive], lstsq(with_ones(z[:, alive]), given.t)[:, :-1]) < TIGHT


def test_columns_of_very_different_scale_are_not_taken_for_dependent() -> None:
    """A weak input is determined as well as a strong one."""
    given = case()
    scale = torch.logspace(-5, 0, INPUTS, dtype=torch.float64)
    scaled = Case(given.z * scale, given.t, given.prior / scale, given.prior_bias)
    found = solve(scaled.gram, scaled.prior, scaled.prior_bias, 0.0)
    plain = solve(given.gram, given.prior, given.prior_bias, 0.0)
    assert found.rank == INPUTS
    assert distance(found.weight * scale, plain.weight) < TIGHT


# -- the dual --------------------------------------------------------------------------------


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize(("rows", "inputs"), [(5, 11), (11, 11), (40, 7)])
def test_the_dual_is_the_primal(rows: int, inputs: int, intercept: bool) -> None:
    """The kernel of the rows gives the weights that the Gram matrix of the inputs gives."""
    given = case(2, rows, inputs)
    primal = solve(given.gram, given.prior, given.prior_bias, RIDGE, intercept=intercept)
    dual = solve_dual(given.z, given.t, given.prior, given.prior_bias, RIDGE, intercept=intercept)
    assert distance(dual.weight, primal.weight) < TIGHT
    assert distance(dual.bias, primal.bias) < TIGHT
    assert distance(dual.variance, primal.variance) < TIGHT
    assert float((dual.unexplained - primal.unexplained).abs().max()) < TIGHT * float(
        primal.variance.max()
    )


def test_the_dual_notices_another_ridge() -> None:
    """Negative control: one per cent more damping is a difference."""
    given = case(2, 5, 11)
    primal = solve(given.gram, given.prior, given.prior_bias, RIDGE)
    dual = solve_dual(given.z, given.t, given.prior, given.prior_bias, 1.01 * RIDGE)
    assert distance(dual.weight, primal.weight) > 1e3 * TIGHT


def test_the_dual_without_ridge_interpolates() -> None:
    """Fewer rows than inputs and no damping: the targets are met, nearest to the prior."""
    given = case(2, 5, 11)
    dual = solve_dual(given.z, given.t, given.prior, given.prior_bias, 0.0)
    assert dual.residual < TIGHT
    assert dual.rank == 4  # one direction of the rows is the intercept's
    centred = given.z - given.z.mean(0)
    step = lstsq(centred, given.t - given.t.mean(0) - centred @ given.prior.T)
    assert distance(dual.weight, given.prior + step) < TIGHT


# -- sums ------------------------------------------------------------------------------------


def sums(gram: Gram) -> tuple[Tensor, ...]:
    """The plain sums of a Gram."""
    return gram.zz, gram.zt, gram.tt, gram.z, gram.t


def test_the_sums_are_plain_sums() -> None:
    """Whatever shift is used inside, what is read are sums of products over the rows."""
    given = case()
    z, t = given.z, given.t
    expected = (z.T @ z, z.T @ t, t.square().sum(0), z.sum(0), t.sum(0))
    for found, plain in zip(sums(given.gram), expected, strict=True):
        assert distance(found, plain) < TIGHT


def test_streamed_sums_are_sums_of_all_rows() -> None:
    """Batches and processes add up."""
    given = case()
    streamed, other = Gram.zeros(INPUTS, OUTPUTS), Gram.zeros(INPUTS, OUTPUTS)
    for rows in (slice(0, 1), slice(1, 30)):
        streamed.add(given.z[rows], given.t[rows])
    for rows in (slice(30, 77), slice(77, ROWS)):
        other.add(given.z[rows], given.t[rows])
    total = streamed + other
    assert total.rows == ROWS
    for found, whole in zip(sums(total), sums(given.gram), strict=True):
        assert distance(found, whole) < TIGHT
    assert distance(streamed.zz, given.gram.zz) > 0.1  # the control: a part isn't the whole


def test_a_part_is_the_gram_of_the_parts_arrays() -> None:
    """Selecting sums equals summing selected columns, in the order asked for."""
    given = case()
    columns, outputs = torch.tensor([5, 0, 3]), torch.tensor([2, 0])
    part = given.gram.part(columns, outputs)
    alone = Gram.zeros(3, 2)
    alone.add(given.z[:, columns], given.t[:, outputs])
    for found, expected in zip(sums(part), sums(alone), strict=True):
        assert distance(found, expected) < TIGHT
    sorted_part = given.gram.part(columns.sort().values, outputs)
    assert distance(sorted_part.zz, part.zz) > 1e-3


def test_solving_on_a_part_is_solving_without_the_rest() -> None:
    """Weights that don't exist are no unknowns."""
    given = case()
    columns, outputs = torch.tensor([5, 0, 3]), torch.tensor([2, 0])
    prior, bias = given.prior[outputs][:, columns], given.prior_bias[outputs]
    alone = Case(given.z[:, columns], given.t[:, outputs], prior, bias)
    found = solve(given.gram.part(columns, outputs), prior, bias, RIDGE)
    assert distance(found.weight, penalised(alone, RIDGE)[0]) < TIGHT
    everything = solve(given.gram, given.prior, given.prior_bias, RIDGE)
    assert distance(found.weight, everything.weight[outputs][:, columns]) > 1e-2


def batch(cases: list[Case]) -> tuple[Gram, Tensor, Tensor]:
    """Several problems of one shape as one."""
    gram = Gram.zeros(INPUTS, OUTPUTS, (len(cases),))
    gram.add(torch.stack([c.z for c in cases]), torch.stack([c.t for c in cases]))
    return gram, torch.stack([c.prior for c in cases]), torch.stack([c.prior_bias for c in cases])


@pytest.mark.parametrize("intercept", [True, False])
def test_a_batch_is_a_loop(intercept: bool) -> None:
    """Leading dims hold independent problems."""
    cases = [case(seed) for seed in range(4)]
    together = solve(*batch(cases), RIDGE, intercept=intercept)
    alone = [solve(c.gram, c.prior, c.prior_bias, RIDGE, intercept=intercept) for c in cases]
    assert distance(together.weight, torch.stack([s.weight for s in alone])) < TIGHT
    assert distance(together.bias, torch.stack([s.bias for s in alone])) < TIGHT
    assert distance(together.unexplained, torch.stack([s.unexplained for s in alone])) < TIGHT
    assert together.condition == pytest.approx(max(s.condition for s in alone), rel=TIGHT)
    assert distance(together.weight[0], alone[1].weight) > 1e-2


def test_one_deficient_problem_does_not_spoil_the_batch() -> None:
    """The least rank is reported; the other problems are solved as before."""
    cases = [case(0), deficient(4)]
    found = solve(*batch(cases), 0.0)
    assert found.rank == 4
    for k, given in enumerate(cases):
        alone: Solution = solve(given.gram, given.prior, given.prior_bias, 0.0)
        assert distance(found.weight[k], alone.weight) < 1e-7


def test_per_channel_is_one_regression_a_channel() -> None:
    """Scale and shift of each channel are those of lstsq on that channel alone."""
    given = case(0, ROWS, OUTPUTS)
    channels = ChannelGram(OUTPUTS)
    channels.add(given.z[:50], given.t[:50])
    channels.add(given.z[50:], given.t[50:])
    found = per_channel(channels, torch.ones(OUTPUTS), torch.zeros(OUTPUTS), 0.0)
    for c in range(OUTPUTS):
        slope, offset = lstsq(with_ones(given.z[:, c : c + 1]), given.t[:, c : c + 1])[0]
        assert float(found.weight[c]) == pytest.approx(float(slope), rel=TIGHT)
        assert float(found.bias[c]) == pytest.approx(float(offset), rel=TIGHT)


def test_a_channel_without_variance_keeps_its_prior_scale() -> None:
    """A dead channel isn't scaled to infinity; its shift still fits the target's mean."""
    given = case(0, ROWS, OUTPUTS)
    z = given.z.clone()
    z[:, 1] = 0.0
    channels = ChannelGram(OUTPUTS)
    channels.add(z, given.t)
    found = per_channel(channels, torch.full((OUTPUTS,), 1.5), torch.zeros(OUTPUTS), 0.0)
    assert float(found.weight[1]) == 1.5
    assert float(found.bias[1]) == pytest.approx(float(given.t[:, 1].mean()), rel=1e-12)
    assert float(found.weight[0]) != 1.5


def test_float32_rows_with_a_large_mean_are_fitted() -> None:
    """Products in float32 are taken about the mean, which costs no digits."""
    given = case()
    z, t = (given.z + 3000).float(), (given.t + 2000).float()
    gram = Gram.zeros(INPUTS, OUTPUTS)
    gram.add(z, t)
    found = solve(gram, given.prior, given.prior_bias, 0.0)
    expected = lstsq(with_ones(z.double() - 3000), t.double())[:, :-1]
    assert distance(found.weight, expected) < CONDITION * ROWS * torch.finfo(torch.float32).eps
    plain = (z.T @ z).double() / ROWS - torch.outer(z.double().mean(0), z.double().mean(0))
    assert distance(plain, torch.cov(z.double().T, correction=0)) > 1e-3  # the control


def _split(weights: Tensor) -> tuple[Tensor, Tensor]:
    return weights[:, :-1], weights[:, -1]


@pytest.mark.parametrize("dual", [False, True])
def test_a_bias_that_fits_is_kept_to_the_bit(dual: bool) -> None:
    """Sums of float32 rows would give 1e-7 for zero, which a later normalisation makes a one."""
    given = case()
    z, prior_bias = given.z.float(), torch.zeros(OUTPUTS, dtype=torch.float64)
    t = (z.double() @ given.prior.T).float()
    gram = Gram.zeros(INPUTS, OUTPUTS)
    gram.add(z, t)
    found = (
        solve_dual(z, t, given.prior, prior_bias, RIDGE)
        if dual
        else solve(gram, given.prior, prior_bias, RIDGE)
    )
    assert found.bias.equal(prior_bias)
    moved = replace(given, t=given.z @ given.prior.T + 1e-3)
    assert (solve(moved.gram, given.prior, prior_bias, RIDGE).bias - 1e-3).abs().max() < 1e-9
