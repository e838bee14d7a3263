"""Streamed moments: sums that add up, and stay accurate in float32."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
import torch
from torch import Tensor

from pleas_fx.algebra.moments import Between, Moments
from pleas_fx.algebra.products import square
from pleas_fx.algebra.similarity import (
    concordance,
    correlation,
    correlations,
    cross_correlation,
    similarities,
)
from pleas_fx.algebra.weighting import Matrix

ROWS, SIZE = 210, 7
TIGHT = ROWS * torch.finfo(torch.float64).eps  # rounding of a float64 sum of ROWS terms of order 1


def sample(seed: int = 0, offset: float = 3.0) -> Tensor:
    """Correlated float64 rows with a mean far from zero."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(SIZE, SIZE, dtype=torch.float64, generator=generator)
    noise = torch.randn(ROWS, SIZE, dtype=torch.float64, generator=generator)
    return noise @ mix + offset


def streamed(rows: Tensor, batches: int) -> Moments:
    """Moments of ``rows``, added in batches of unequal sizes."""
    moments = Moments.zeros(rows.shape[1])
    edges = torch.linspace(0, 1, batches + 1).square().mul(len(rows)).long().tolist()
    for a, b in pairwise(edges):
        if b > a:
            moments.add(rows[a:b])
    return moments


def distance(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the largest entry."""
    return float((a - b).abs().max() / b.abs().max())


def reference(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance the textbook way, in float64."""
    rows = rows.double()
    return rows.mean(0), torch.cov(rows.T, correction=0)


@pytest.mark.parametrize("batches", [1, 2, 9])
def test_streaming_equals_one_shot(batches: int) -> None:
    """However the rows are cut into batches, mean and covariance are those of all rows."""
    moments = streamed(sample(), batches)
    mean, covariance = reference(sample())
    assert moments.count == ROWS
    assert distance(moments.mean, mean) < TIGHT
    assert distance(moments.covariance, covariance) < TIGHT


def test_a_lost_batch_is_noticed() -> None:
    """Negative control: leaving a few rows out moves mean and covariance by far more."""
    moments = streamed(sample()[:-5], 3)
    mean, covariance = reference(sample())
    assert distance(moments.mean, mean) > 1e6 * TIGHT
    assert distance(moments.covariance, covariance) > 1e6 * TIGHT


def test_merging_halves_with_different_shifts_equals_the_whole() -> None:
    """Sums of two processes add up although each centred on rows of its own."""
    rows = torch.cat([sample(0, offset=-40.0)[:80], sample(0, offset=25.0)[80:]])
    left, right = streamed(rows[:80], 2), streamed(rows[80:], 3)
    assert left.shift is not None
    assert right.shift is not None
    assert float((left.shift - right.shift).abs().min()) > 1
    left.merge(right)
    mean, covariance = reference(rows)
    assert left.count == ROWS
    assert distance(left.mean, mean) < TIGHT
    assert distance(left.covariance, covariance) < TIGHT


def test_merging_without_moving_to_a_common_shift_would_be_wrong() -> None:
    """Negative control: adding the sums as they stand ignores that the halves centre apart."""
    rows = torch.cat([sample(0, offset=-40.0)[:80], sample(0, offset=25.0)[80:]])
    left, right = streamed(rows[:80], 1), streamed(rows[80:], 1)
    naive = Moments(ROWS, left.total + right.total, left.square + right.square, left.shift)
    assert distance(naive.covariance, reference(rows)[1]) > 0.1


def test_a_sum_of_accumulators_leaves_both_as_they_were() -> None:
    """``a + b`` is the merge, in memory of its own."""
    a, b = streamed(sample(1), 1), streamed(sample(2), 1)
    before = a.square.clone()
    both = a + b
    assert torch.equal(a.square, before)
    assert distance(both.covariance, reference(torch.cat([sample(1), sample(2)]))[1]) < TIGHT


def test_the_second_moment_is_not_centred() -> None:
    """``second`` is the mean of x xᵀ, which the covariance isn't."""
    rows = sample()
    moments = streamed(rows, 3)
    expected = rows.T @ rows / ROWS
    assert distance(moments.second, expected) < TIGHT
    assert distance(moments.covariance, expected) > 0.1


def test_merging_is_symmetric_and_empty_sums_change_nothing() -> None:
    """Order doesn't matter, and a process that saw no rows may report too."""
    a, b = streamed(sample(1), 1), streamed(sample(2), 1)
    b_first = streamed(sample(2), 1)
    b_first.merge(streamed(sample(1), 1))
    a.merge(b)
    assert distance(a.covariance, b_first.covariance) < TIGHT
    empty = Moments.zeros(SIZE)
    empty.merge(a)
    empty.merge(Moments.zeros(SIZE))
    assert torch.equal(empty.covariance, a.covariance)
    assert torch.equal(empty.mean, a.mean)


def test_merging_leaves_the_other_accumulator_as_it_was() -> None:
    """Sums are read, never shared: adding rows afterwards touches one side only."""
    other, own = streamed(sample(1), 1), Moments.zeros(SIZE)
    before = other.square.clone()
    own.merge(other)
    own.add(sample(2))
    assert torch.equal(other.square, before)


def test_no_rows_give_zero_moments() -> None:
    """Before the first row everything is zero, nothing is NaN."""
    empty = Moments.zeros(SIZE)
    assert not empty.mean.any()
    assert not empty.covariance.any()
    assert not correlation(empty.covariance).any()


def test_dead_channels_correlate_with_nothing() -> None:
    """A channel without variance has correlation zero with everything, itself included."""
    rows = sample()
    rows[:, 2] = 0.0
    rows[:, 5] = 1234.5
    found = correlation(streamed(rows, 4).covariance)
    dead = torch.tensor([2, 5])
    assert not found[dead].any()
    assert not found[:, dead].any()
    alive = torch.tensor([0, 1, 3, 4, 6])
    expected = torch.corrcoef(rows[:, alive].T)
    assert distance(found[alive][:, alive], expected) < TIGHT


def test_a_weak_channel_is_not_dead() -> None:
    """Negative control: a channel a thousand times weaker than the rest still correlates."""
    rows = sample()
    rows[:, 2] *= 1e-3
    found = correlation(streamed(rows, 4).covariance)
    assert float(found[2, 2]) == pytest.approx(1.0, abs=1e-9)
    assert float(found[2].abs().sum()) > 1.1


def test_correlation_ignores_scale_and_sign_of_channels() -> None:
    """Correlations of scaled channels differ by signs only."""
    scale = torch.tensor([1.0, -2.0, 0.5, 10.0, -0.1, 3.0, 7.0], dtype=torch.float64)
    covariance = reference(sample())[1]
    scaled = correlation(covariance * scale[:, None] * scale[None, :])
    signs = scale.sign()
    assert distance(scaled, correlation(covariance) * torch.outer(signs, signs)) < TIGHT


FLOAT32 = 8 * torch.finfo(torch.float32).eps


def test_float32_rows_with_large_offsets_keep_their_covariance() -> None:
    """Products in float32 are accurate to float32, though the mean is 4000 deviations."""
    rows = sample(offset=1e4).float()
    moments = streamed(rows, 5)
    mean, covariance = reference(rows)
    assert distance(moments.mean, mean) < FLOAT32
    assert distance(moments.covariance, covariance) < 10 * FLOAT32


def test_half_precision_rows_are_summed_in_float32() -> None:
    """float16 products would overflow and drown; the rows' own rounding is all that remains."""
    rows = sample(offset=300.0).half()
    mean, covariance = reference(rows)
    moments = streamed(rows, 3)
    assert distance(moments.mean, mean) < FLOAT32
    assert distance(moments.covariance, covariance) < 10 * FLOAT32


def test_float32_sums_without_a_shift_would_lose_the_covariance() -> None:
    """Negative control: uncentred float32 second moments leave nothing of it."""
    rows = sample(offset=1e4).float()
    mean, covariance = reference(rows)
    naive = (rows.T @ rows).double() / ROWS - torch.outer(mean, mean)
    assert distance(naive, covariance) > 0.01


def test_a_block_of_correlations_is_cut_from_all_of_them() -> None:
    """Rows and columns may be any two ranges."""
    moments = streamed(torch.randn(50, 7, dtype=torch.float64), 3)
    block = cross_correlation(moments, slice(1, 4), slice(2, 7))
    assert distance(block, correlation(moments.covariance)[1:4, 2:7]) < TIGHT


def test_concordance_tells_multiples_and_shifts_apart_where_correlation_cannot() -> None:
    """1 for an equal variable only; a scaled or shifted one correlates perfectly all the same."""
    x = torch.randn(400, dtype=torch.float64)
    moments = streamed(torch.stack([x, x, 3 * x, x + 2], 1), 4)
    everything = slice(0, 4)
    found = concordance(moments, everything, everything)[0]
    assert abs(float(found[1]) - 1) < TIGHT
    assert float(found[2:].max()) < 0.7
    assert float(correlation(moments.covariance)[0].min()) > 1 - TIGHT


def test_concordance_of_constants_says_whether_they_are_equal() -> None:
    """Neither varies: 1 for equal means, else 0."""
    moments = streamed(torch.tensor([[2.0, 2.0, 5.0]]).repeat(6, 1).double(), 2)
    found = concordance(moments, slice(0, 1), slice(1, 3))
    assert found.tolist() == [[1.0, 0.0]]


def test_what_is_read_off_without_a_matrix_is_in_the_covariance() -> None:
    """Diagonal, single entries, a sum into another matrix, and the product with a weighting."""
    moments = streamed(sample(), 3)
    covariance = moments.covariance
    scale = float(covariance.abs().max())
    rows, columns = torch.tensor([[0], [4]]), torch.tensor([1, 6, 4])
    weighting = torch.arange(9, dtype=torch.float64).view(3, 3)
    other = torch.ones(SIZE, SIZE, dtype=torch.float64)
    moments.add_covariance(other, -2.0)
    pairs = [
        (moments.variance, covariance.diagonal()),
        (moments.covariances(rows, columns), covariance[rows, columns]),
        (other, 1 - 2 * covariance),
        (
            torch.tensor(moments.inner(Matrix(weighting), slice(2, 5)), dtype=torch.float64),
            (weighting * covariance[2:5, 2:5]).sum(),
        ),
    ]
    for found, expected in pairs:
        assert float((found - expected).abs().max()) < 100 * TIGHT * scale


def test_wide_squares_are_those_of_one_product() -> None:
    """Panels and mirrored blocks give the whole product; also in a batch."""
    rows = torch.randn(2, 9, 1100, dtype=torch.float64)
    found = square(rows)
    assert distance(found, rows.mT @ rows) < TIGHT


PARTS = 3  # sources whose variables are compared
APART = list(combinations(range(PARTS), 2))


def compared(rows: Tensor, batches: int, dtype: torch.dtype = torch.float64) -> Between:
    """Only products between parts, added in equal batches."""
    found = Between.zeros(rows.shape[1], PARTS, dtype=dtype)
    for part in rows.chunk(batches):
        found.add(part)
    return found


def part(number: int, size: int) -> slice:
    """The variables of one part."""
    return slice(number * size, (number + 1) * size)


@pytest.mark.parametrize("count", [10, 300])
def test_what_is_kept_between_parts_is_what_all_products_say(count: int) -> None:
    """Few rows and many: blocks, parts of them, variances and single entries."""
    rows = torch.randn(count, 24 * PARTS, dtype=torch.float64) + 2.0
    between, whole = compared(rows, 4), streamed(rows, 4)
    assert distance(between.variance, whole.variance) < TIGHT
    for s, t in APART:
        own, other = part(s, 24), slice(t * 24 + 3, t * 24 + 20)
        found, wanted = (similarities(m, own, other) for m in (between, whole))
        assert all(distance(a, b) < TIGHT for a, b in zip(found, wanted, strict=True))
        at = torch.arange(24) + s * 24, torch.randperm(24) + t * 24
        assert distance(correlations(between, *at), correlations(whole, *at)) < TIGHT
        left_out = compared(rows[:-2], 4)
        assert distance(similarities(left_out, own, other)[0], wanted[0]) > 1e6 * TIGHT


def test_entries_of_a_correlation_are_those_of_the_block() -> None:
    """One for each pair of indices."""
    moments = streamed(sample(), 3)
    rows, columns = torch.tensor([0, 2, 1]), torch.tensor([6, 4, 5])
    block = cross_correlation(moments, slice(0, SIZE), slice(0, SIZE))
    assert distance(correlations(moments, rows, columns), block[rows, columns]) < TIGHT


def test_sums_in_float32_are_as_exact_as_its_products() -> None:
    """Far from zero too; a float32 matrix takes them up."""
    rows = torch.randn(800, 12 * PARTS) + 100.0
    whole = Moments.zeros(rows.shape[1], dtype=torch.float32)
    for piece in rows.chunk(5):
        whole.add(piece)
    covariance = reference(rows)[1]
    matrix = torch.zeros(covariance.shape)
    whole.add_covariance(matrix, 2.0)
    assert whole.square.dtype == torch.float32
    assert distance(matrix.double(), 2 * covariance) < 10 * FLOAT32
    assert distance(whole.variance, covariance.diagonal()) < 10 * FLOAT32
    weighting = torch.eye(12)
    trace = covariance[12:24, 12:24].trace()
    assert whole.inner(Matrix(weighting), part(1, 12)) == pytest.approx(float(trace), rel=1e-4)
    found = similarities(compared(rows, 5, torch.float32), part(0, 12), part(2, 12))
    wanted = similarities(streamed(rows.double(), 1), part(0, 12), part(2, 12))
    assert all(distance(a, b) < 100 * FLOAT32 for a, b in zip(found, wanted, strict=True))


WIDE = 60  # variables of which there are few rows


def few_and_settled() -> tuple[Moments, Moments]:
    """The same few rows of many variables, as rows and as their products."""
    generator = torch.Generator().manual_seed(5)
    rows = torch.randn(WIDE // 5, WIDE, dtype=torch.float64, generator=generator) + 2.0
    found = []
    for _ in range(2):
        moments = Moments.zeros(WIDE)
        moments.add(rows[:5])
        moments.add(rows[5:])
        found.append(moments)
    assert found[1].square.shape == (WIDE, WIDE)
    return found[0], found[1]


def test_few_rows_say_what_their_products_say() -> None:
    """Without the products of all pairs of variables."""
    few, settled = few_and_settled()
    left, right = torch.arange(8).view(2, 1, 4), torch.arange(10, 18).view(2, 4)
    own = slice(20, 40)
    weighting = settled.square[own, own].clone()
    matrices = [torch.eye(WIDE, dtype=torch.float64) for _ in range(2)]
    for moments, matrix in zip((few, settled), matrices, strict=True):
        moments.add_covariance(matrix, 0.3)
    assert distance(matrices[0], matrices[1]) < TIGHT
    assert distance(few.variance, settled.variance) < TIGHT
    assert distance(few.covariances(left, right), settled.covariances(left, right)) < TIGHT
    assert few.covariances(left, right).shape == (2, 2, 4)
    assert few.inner(Matrix(weighting), own) == pytest.approx(
        settled.inner(Matrix(weighting), own), rel=1e-12
    )
    blocks = [concordance(m, own, slice(0, 20)) for m in (few, settled)]
    assert distance(blocks[0], blocks[1]) < TIGHT
    assert few._square is None, "the products weren't made"
    assert distance(few.square, settled.square) < TIGHT


def test_rows_that_come_later_count_after_a_reading() -> None:
    """Reading doesn't end the sums."""
    moments, rows = Moments.zeros(SIZE), sample()
    for start in range(0, ROWS, 30):
        moments.add(rows[start : start + 30])
        _ = moments.variance
    assert distance(moments.covariance, reference(rows)[1]) < TIGHT
    assert distance(moments.variance, reference(rows)[1].diagonal()) < TIGHT
