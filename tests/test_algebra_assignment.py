"""Assignments: planted truths are found, optima equal brute force, matchings never contradict."""

from __future__ import annotations

from itertools import combinations, permutations

import numpy as np
import pytest

from pleas_fx.algebra.assignment import assign, assign_blocks, consistent
from pleas_fx.ir import FloatArray, IntArray

Pairs = dict[tuple[int, int], list[FloatArray]]


def planted(order: IntArray, noise: float, seed: int = 0) -> FloatArray:
    """A similarity of one where ``order`` says so, zero elsewhere, under uniform noise."""
    rng = np.random.default_rng(seed)
    size = len(order)
    truth = np.eye(size)[order]
    return truth + rng.uniform(-noise, noise, (size, size))


def value(similarity: FloatArray, order: IntArray) -> float:
    """The sum that an assignment collects."""
    return float(similarity[np.arange(len(order)), order].sum())


# -- one matrix ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_a_planted_permutation_is_recovered_under_noise(seed: int) -> None:
    """Noise below a quarter of the gap can't outweigh one right pair by several wrong ones."""
    order = np.random.default_rng(seed).permutation(17)
    assert (assign(planted(order, 0.24, seed)) == order).all()


def test_noise_above_the_gap_hides_the_permutation() -> None:
    """Negative control: what is recovered depends on the similarity, not on luck."""
    order = np.random.default_rng(0).permutation(17)
    assert (assign(planted(order, 3.0)) != order).any()


@pytest.mark.parametrize("seed", range(5))
def test_the_assignment_is_the_best_of_all(seed: int) -> None:
    """Brute force over all permutations finds nothing better."""
    similarity = np.random.default_rng(seed).normal(size=(6, 6))
    found = assign(similarity)
    best = max(value(similarity, np.array(p)) for p in permutations(range(6)))
    assert sorted(found) == list(range(6))
    assert value(similarity, found) == pytest.approx(best, rel=1e-12)
    assert value(similarity, np.arange(6)) < best  # the control: the identity isn't optimal


@pytest.mark.parametrize("level", [0.0, 1.0, -3.0, 1e-8, 1e8])
def test_ties_keep_the_order(level: float) -> None:
    """Where nothing speaks for an exchange, channels stay where they are."""
    assert (assign(np.full((9, 9), level)) == np.arange(9)).all()


def test_ties_among_some_channels_keep_their_order() -> None:
    """Duplicated channels stay in order while the others are exchanged as they should be."""
    similarity = planted(np.array([1, 0, 2, 3, 4, 5]), 0.0)
    similarity[2:, 2:] = 0.7
    assert assign(similarity).tolist() == [1, 0, 2, 3, 4, 5]


def test_the_tie_break_overrules_no_real_difference() -> None:
    """Negative control: a preference of one in a million is followed."""
    similarity = np.full((4, 4), 1.0)
    similarity[0, 1] += 1e-6
    assert assign(similarity)[0] == 1


@pytest.mark.parametrize("missing", [np.nan, -np.inf])
def test_undefined_similarities_are_avoided(missing: float) -> None:
    """An undefined pair is matched only where there is no other way."""
    order = np.array([2, 0, 1, 3])
    similarity = planted(order, 0.1)
    similarity[0, 0] = missing
    assert (assign(similarity) == order).all()
    similarity[0, 2] = missing
    assert similarity[0, assign(similarity)[0]] == similarity[0, assign(similarity)[0]]
    assert (assign(np.full((3, 3), missing)) == np.arange(3)).all()


# -- blocks -------------------------------------------------------------------------------------


def wreath(seed: int, count: int, inner: int) -> tuple[IntArray, IntArray]:
    """A random exchange of blocks with random exchanges inside, as (blocks, channels)."""
    rng = np.random.default_rng(seed)
    outer = rng.permutation(count)
    inside = np.stack([rng.permutation(inner) for _ in range(count)])
    return outer, (outer[:, None] * inner + inside).reshape(-1)


@pytest.mark.parametrize("seed", range(5))
def test_a_planted_wreath_permutation_is_recovered_exactly(seed: int) -> None:
    """Blocks and the channels inside them, at once."""
    outer, channels = wreath(seed, 4, 5)
    found, (inside,) = assign_blocks([planted(channels, 0.2, seed)], 4)
    assert (found == outer).all()
    assert (inside == channels).all()


def test_channels_never_leave_their_block() -> None:
    """Where the best free assignment crosses blocks, the blocks win."""
    order = np.array([1, 2, 3, 4, 5, 0])
    similarity = planted(order, 0.0)
    found, (inside,) = assign_blocks([similarity], 2)
    assert (inside.reshape(2, 3) // 3 == found[:, None]).all()
    assert (assign(similarity) == order).all()  # the control: without blocks it would cross


@pytest.mark.parametrize("seed", range(4))
def test_blocks_are_solved_to_the_optimum(seed: int) -> None:
    """Brute force over all 6 · 6³ exchanges of 3 blocks of 3 finds nothing better."""
    similarity = np.random.default_rng(seed).normal(size=(9, 9))
    inner = [np.array(p) for p in permutations(range(3))]
    best = max(
        sum(
            max(value(similarity[3 * a : 3 * a + 3, 3 * b : 3 * b + 3], p) for p in inner)
            for a, b in enumerate(blocks)
        )
        for blocks in permutations(range(3))
    )
    _, (found,) = assign_blocks([similarity], 3)
    assert value(similarity, found) == pytest.approx(best, rel=1e-12)
    assert value(similarity, assign(similarity)) > best  # the control: blocks are a constraint


def test_the_groups_of_a_family_exchange_their_blocks_together() -> None:
    """One group's evidence decides for a group that has none, inner sizes may differ."""
    outer, channels = wreath(3, 4, 5)
    found, (clear, blind) = assign_blocks([planted(channels, 0.1), np.zeros((8, 8))], 4)
    assert (found == outer).all()
    assert (clear == channels).all()
    assert (blind == (outer[:, None] * 2 + np.arange(2)).reshape(-1)).all()
    alone, _ = assign_blocks([np.zeros((8, 8))], 4)
    assert (alone == np.arange(4)).all()  # the control: by itself it would stay


def test_a_family_weighs_the_evidence_of_all_its_groups() -> None:
    """Blocks go where the sum over the groups is largest, not where the first group says."""
    swap, stay = np.kron(np.eye(2)[::-1], np.eye(3)), np.eye(4)
    assert assign_blocks([swap, 0.1 * stay], 2)[0].tolist() == [1, 0]
    assert assign_blocks([swap, 10 * stay], 2)[0].tolist() == [0, 1]


def test_tied_blocks_keep_their_order() -> None:
    """Where nothing speaks for an exchange, blocks and channels stay."""
    outer, (inside,) = assign_blocks([np.ones((12, 12))], 3)
    assert (outer == np.arange(3)).all()
    assert (inside == np.arange(12)).all()


@pytest.mark.parametrize(("count", "inner"), [(1, 6), (6, 1)])
def test_trivial_blocks_are_plain_assignments(count: int, inner: int) -> None:
    """One block, or blocks of one channel, restrict nothing."""
    similarity = np.random.default_rng(0).normal(size=(count * inner, count * inner))
    _, (inside,) = assign_blocks([similarity], count)
    assert (inside == assign(similarity)).all()


# -- several sources ----------------------------------------------------------------------------


def pairs_of(truths: list[IntArray], noise: float, seed: int = 0) -> Pairs:
    """``truths[s][i]`` is the channel of source s that is feature i; similarities of all pairs."""
    found: Pairs = {}
    for k, (s, t) in enumerate(combinations(range(len(truths)), 2)):
        matched = np.empty(len(truths[0]), np.int64)
        matched[truths[s]] = truths[t]
        found[s, t] = [planted(matched, noise, seed * 100 + k)]
    return found


def noisy_pairs(sources: int, size: int, seed: int) -> Pairs:
    """Similarities without any truth behind them."""
    rng = np.random.default_rng(seed)
    return {p: [rng.normal(size=(size, size))] for p in combinations(range(sources), 2)}


def total(similarity: Pairs, partner: IntArray) -> float:
    """The sum over all pairs of sources and all slots."""
    return sum(float(m[0][partner[s], partner[t]].sum()) for (s, t), m in similarity.items())


def star(similarity: Pairs, sources: int, size: int) -> IntArray:
    """Every source matched with source 0 alone."""
    rows = [assign(similarity[0, s][0]) for s in range(1, sources)]
    return np.stack([np.arange(size), *rows])


@pytest.mark.parametrize("seed", range(4))
def test_four_planted_sources_are_matched(seed: int) -> None:
    """Every slot holds the four channels of one feature; source 0 keeps its order."""
    rng = np.random.default_rng(seed)
    truths = [np.arange(11), *(rng.permutation(11) for _ in range(3))]
    (partner,) = consistent(pairs_of(truths, 0.24, seed), 4, None)
    assert (partner == np.stack(truths)).all()


def test_all_pairs_together_recover_what_the_star_misses() -> None:
    """Where source 0 saw nothing of a source, the other sources tell."""
    rng = np.random.default_rng(1)
    truths = [np.arange(11), *(rng.permutation(11) for _ in range(3))]
    similarity = pairs_of(truths, 0.1)
    similarity[0, 3] = [rng.uniform(0, 0.1, (11, 11))]
    (partner,) = consistent(similarity, 4, None)
    assert (partner == np.stack(truths)).all()
    assert (star(similarity, 4, 11) != np.stack(truths)).any()  # the control


@pytest.mark.parametrize("seed", range(6))
def test_matchings_are_consistent_around_every_cycle(seed: int) -> None:
    """A slot holds one channel of each source, so s → t → u equals s → u, whatever the data."""
    similarity = noisy_pairs(4, 6, seed)
    (partner,) = consistent(similarity, 4, None)
    assert (partner[0] == np.arange(6)).all()
    assert all(sorted(row) == list(range(6)) for row in partner)
    step = [assign(similarity[p][0]) for p in ((0, 1), (1, 2), (0, 2))]
    assert (step[1][step[0]] != step[2]).any()  # the control: pairwise matchings contradict


@pytest.mark.parametrize("seed", range(4))
def test_two_sources_are_solved_exactly(seed: int) -> None:
    """With two sources it is the assignment."""
    similarity = noisy_pairs(2, 7, seed)
    (partner,) = consistent(similarity, 2, None)
    assert (partner[0] == np.arange(7)).all()
    assert (partner[1] == assign(similarity[0, 1][0])).all()


@pytest.mark.parametrize("size", [2, 3, 5])
def test_no_matching_is_worse_than_the_star(size: int) -> None:
    """Matching each source with source 0 alone never collects more, and often less."""
    gains = []
    for seed in range(60):
        similarity = noisy_pairs(4, size, seed)
        (partner,) = consistent(similarity, 4, None)
        gains.append(total(similarity, partner) - total(similarity, star(similarity, 4, size)))
    assert min(gains) > -1e-9
    assert np.mean(np.array(gains) > 1e-9) > 0.3  # the control: it isn't the star itself


def test_no_single_source_can_be_rematched_to_advantage() -> None:
    """The result is a fixed point: the best for each source, given the others."""
    similarity = noisy_pairs(3, 5, 0)
    (partner,) = consistent(similarity, 3, None)
    own = total(similarity, partner)
    for s in range(3):
        for other in permutations(range(5)):
            changed = partner.copy()
            changed[s] = other
            assert total(similarity, changed) <= own + 1e-9


def test_several_groups_are_matched_each_for_itself() -> None:
    """Groups without blocks don't influence each other."""
    a, b = noisy_pairs(3, 4, 0), noisy_pairs(3, 6, 1)
    both = consistent({p: [*a[p], *b[p]] for p in a}, 3, None)
    assert (both[0] == consistent(a, 3, None)[0]).all()
    assert (both[1] == consistent(b, 3, None)[0]).all()


@pytest.mark.parametrize("sources", [2, 4])
def test_planted_blocks_are_matched_among_sources(sources: int) -> None:
    """Whole blocks are matched, consistently, with the channels inside."""
    truths = [np.arange(12), *(wreath(s, 3, 4)[1] for s in range(sources - 1))]
    (partner,) = consistent(pairs_of(truths, 0.2), sources, 3)
    assert (partner == np.stack(truths)).all()


def test_blocks_stay_whole_without_any_truth() -> None:
    """On noise, every slot block holds one whole block of each source."""
    for seed in range(4):
        (partner,) = consistent(noisy_pairs(3, 12, seed), 3, 3)
        blocks = partner.reshape(3, 3, 4) // 4
        assert (blocks == blocks[:, :, :1]).all()
        assert (partner[0] == np.arange(12)).all()
    (free,) = consistent(noisy_pairs(3, 12, 0), 3, None)
    assert (free.reshape(3, 3, 4) // 4 != blocks).any()  # the control: blocks are a constraint
