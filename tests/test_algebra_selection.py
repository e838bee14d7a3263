"""Choosing channels: errors as lstsq finds them on samples, choices as the prices say."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from pleas_fx.algebra.selection import (
    MERGED,
    Path,
    Problem,
    lower_bound,
    lower_bounds,
    select,
    select_all,
)
from pleas_fx.algebra.weighting import Matrix, Root, Weighting, added

ROWS = 400
INFINITE = math.inf
TIGHT = 1e-8  # relative errors; a column with less than 1e-9 of its variance left counts as dead


@dataclass(frozen=True)
class Samples:
    """Activations of all sources in matched order, and what their consumers read of them."""

    rows: Tensor  # (rows, sources, channels), centred
    weighting: tuple[Tensor, ...]

    def problem(self, unit: int = 1) -> Problem:
        """The second moments that the selection works on."""
        flat = self.rows.reshape(len(self.rows), -1)
        return Problem(flat.T @ flat / len(flat), [Matrix(q) for q in self.weighting], unit)


def samples(
    seed: int = 0, sources: int = 2, size: int = 6, shared: float = 0.6, decay: float = 3.0
) -> Samples:
    """Sources that share part of their features; consumers read some channels more."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    common = normal(ROWS, 1, size) * shared
    own = normal(ROWS, sources, size) * (1 - shared)
    mix = torch.eye(size, dtype=torch.float64) + 0.3 * normal(size, size)
    scales = torch.linspace(0, -decay, size, dtype=torch.float64).exp()
    rows = (common + own) * scales @ mix
    readers = [normal(size + 2, size) for _ in range(sources)]
    return Samples(rows - rows.mean(0), tuple(r.T @ r for r in readers))


def unexplained(given: Samples, features: list[Tensor], source: int) -> float:
    """The weighted share of a source's variance that lstsq on ``features`` leaves."""
    target = given.rows[:, source].numpy()
    left = target
    if features:
        columns = torch.cat(features, 1).numpy()
        left = target - columns @ np.linalg.lstsq(columns, target, rcond=1e-12)[0]
    weighting = given.weighting[source].numpy()
    return float(((left @ weighting) * left).sum() / ((target @ weighting) * target).sum())


def brute_force(given: Samples, path: Path, prefix: int, unit: int = 1) -> float:
    """Error of a prefix, from the samples: every source reads its own slots and the merged."""
    sources = given.rows.shape[1]
    errors = []
    for s in range(sources):
        features = []
        for kind, index in zip(path.kind[:prefix], path.unit[:prefix], strict=True):
            channels = slice(index * unit, (index + 1) * unit)
            if kind == MERGED:
                features.append(given.rows[:, :, channels].mean(1))
            elif kind == s:
                features.append(given.rows[:, s, channels])
        errors.append(unexplained(given, features, s))
    return float(np.mean(errors))


def choose(given: Samples, merged: float = 1.0, single: float = 1.0, unit: int = 1) -> Path:
    """Everything there is to choose, in order."""
    return select([given.problem(unit)], merged_price=merged, single_price=single, limit=1000)


@pytest.mark.parametrize("prices", [(1.0, 1.0), (4.0, 1.0), (INFINITE, 1.0), (1.0, INFINITE)])
@pytest.mark.parametrize("sources", [2, 3])
def test_the_error_of_every_prefix_is_that_of_lstsq(
    sources: int, prices: tuple[float, float]
) -> None:
    """What a prefix leaves is what a regression on its slots leaves of the samples."""
    given = samples(sources, sources)
    path = choose(given, *prices)
    assert len(path) > 3
    for prefix in range(len(path) + 1):
        assert path.error[prefix] == pytest.approx(brute_force(given, path, prefix), abs=TIGHT)


def test_another_selection_has_another_error() -> None:
    """Negative control: the samples' error depends on which channels were chosen."""
    given = samples()
    path = choose(given, INFINITE, 1.0)
    other = Path(path.kind, 5 - path.unit, path.error)
    assert abs(brute_force(given, other, 3) - path.error[3]) > 1e4 * TIGHT


def test_errors_stay_exact_over_many_units() -> None:
    """Delayed updates change nothing: more units than one update holds."""
    given = samples(size=24, decay=1.0)
    path = choose(given, INFINITE, 1.0)
    assert len(path) == 48
    for prefix in (1, 20, 31, 32, 33, 40, 47, 48):
        assert path.error[prefix] == pytest.approx(brute_force(given, path, prefix), abs=TIGHT)


@pytest.mark.parametrize("prices", [(1.0, 1.0), (3.0, 1.0)])
def test_every_unit_lowers_the_error(prices: tuple[float, float]) -> None:
    """Errors start at one, never rise, and end at zero once nothing is left to gain."""
    for seed in range(5):
        path = choose(samples(seed), *prices)
        assert path.error[0] == 1.0
        assert (np.diff(path.error) <= 0).all()
        assert path.error[-1] >= 0
    everything = choose(samples(), INFINITE, 1.0)
    assert len(everything) == 12
    assert everything.error[-1] < TIGHT
    assert everything.error[-2] > TIGHT  # the control: all of them are needed


def test_the_first_unit_is_the_best_by_itself() -> None:
    """Greedy: no other candidate removes more per price, alone."""
    given, price = samples(), 1.7
    path = choose(given, price, 1.0)
    candidates = {(kind, unit) for kind in (MERGED, 0, 1) for unit in range(6)}
    scores = {
        (kind, unit): (1 - brute_force(given, Path(*_one(kind, unit)), 1))
        / (price if kind == MERGED else 1.0)
        for kind, unit in candidates
    }
    chosen = (int(path.kind[0]), int(path.unit[0]))
    assert scores[chosen] == pytest.approx(max(scores.values()), rel=TIGHT)
    assert min(scores.values()) < 0.5 * scores[chosen]  # the control


def _one(kind: int, unit: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.array([kind]), np.array([unit]), np.zeros(2)


# -- what is merged, what is kept apart -----------------------------------------------------------


def identical(size: int = 6) -> Samples:
    """Two sources with equal activations and equal readers."""
    given = samples(shared=0.5, size=size)
    return Samples(given.rows[:, :1].repeat(1, 2, 1), given.weighting[:1] * 2)


def orthogonal(size: int = 6) -> Samples:
    """Two sources whose activations are uncorrelated, exactly."""
    generator = torch.Generator().manual_seed(3)
    raw = torch.randn(ROWS, 2 * size, dtype=torch.float64, generator=generator)
    basis = torch.linalg.qr(raw)[0] * ROWS**0.5
    eye = torch.eye(size, dtype=torch.float64)
    return Samples(basis.view(ROWS, 2, size), (eye, eye))


def test_identical_sources_are_merged() -> None:
    """Merged slots serve both, so they come first, and n of them leave nothing."""
    path = choose(identical(), merged=1.9, single=1.0)
    assert (path.kind == MERGED).all()
    assert sorted(path.unit) == list(range(6))
    assert path.error[-1] < TIGHT


def test_identical_sources_are_kept_apart_where_merging_costs_more_than_it_serves() -> None:
    """Negative control: at more than twice the price, a merged slot doesn't pay."""
    path = choose(identical(), merged=2.1, single=1.0)
    assert MERGED not in path.kind


def test_orthogonal_sources_are_kept_apart() -> None:
    """The mean of unrelated channels shows each source half of the variance of its own."""
    path = choose(orthogonal(), merged=1.1, single=1.0)
    assert MERGED not in path.kind
    assert len(path) == 12
    cheap = choose(orthogonal(), merged=0.9, single=1.0)
    assert (cheap.kind == MERGED).all()  # the control: at a lower price it pays


def test_shared_channels_are_merged_and_private_ones_kept() -> None:
    """Channel by channel, whatever the rest of the group does."""
    same, apart = identical(3), orthogonal(3)
    readers = (torch.eye(6, dtype=torch.float64),) * 2
    path = choose(Samples(torch.cat([same.rows, apart.rows], 2), readers), 1.5, 1.0)
    merged = set(path.unit[path.kind == MERGED].tolist())
    assert merged == {0, 1, 2}
    assert {(int(k), int(u)) for k, u in zip(path.kind, path.unit, strict=True) if u > 2} == {
        (s, u) for s in (0, 1) for u in (3, 4, 5)
    }


@pytest.mark.parametrize("prices", [(INFINITE, 1.0), (1.0, INFINITE), (INFINITE, INFINITE)])
def test_an_infinite_price_excludes_a_kind(prices: tuple[float, float]) -> None:
    """No unit of that kind is chosen, even where nothing else is left."""
    path = choose(samples(), *prices)
    has_merged, has_single = bool((path.kind == MERGED).any()), bool((path.kind >= 0).any())
    assert has_merged == math.isfinite(prices[0])
    assert has_single == math.isfinite(prices[1])


@pytest.mark.parametrize("merged_price", [0.5, 1.0, 1.5, 2.0])
def test_a_channel_is_in_at_most_one_slot(merged_price: float) -> None:
    """A merged unit takes its channels from every source."""
    for seed in range(5):
        path = choose(samples(seed, sources=3), merged_price)
        merged = set(path.unit[path.kind == MERGED].tolist())
        singles = [(int(k), int(u)) for k, u in zip(path.kind, path.unit, strict=True) if k >= 0]
        assert len(merged) == int((path.kind == MERGED).sum())
        assert len(set(singles)) == len(singles)
        assert not merged & {unit for _, unit in singles}


def test_without_exclusion_a_merged_channel_may_also_be_kept_apart() -> None:
    """Negative control: then mixtures of a channel's slots do occur, and leave less."""
    given = samples()
    free = select(
        [given.problem()], merged_price=1.0, single_price=1.0, limit=1000, exclusive=False
    )
    merged = set(free.unit[free.kind == MERGED].tolist())
    assert merged & set(free.unit[free.kind >= 0].tolist())
    assert free.error[-1] < TIGHT < choose(given).error[-1]


def test_the_limit_is_a_prefix() -> None:
    """Stopping early changes nothing about what came before."""
    whole = choose(samples())
    for limit in (0, 1, 4):
        part = select([samples().problem()], merged_price=1.0, single_price=1.0, limit=limit)
        assert len(part) == limit
        assert (part.kind == whole.kind[:limit]).all()
        assert (part.unit == whole.unit[:limit]).all()
        assert np.array_equal(part.error, whole.error[: limit + 1])


def test_dependent_and_dead_channels_are_left_out() -> None:
    """What the chosen channels already say, or nobody's noise says, isn't worth a slot."""
    given = samples(decay=0.5)
    rows = given.rows.clone()
    rows[..., 4] = 0.0
    rows[..., 5] = rows[..., 0] - 2 * rows[..., 1]
    path = choose(Samples(rows, given.weighting), INFINITE, 1.0)
    assert len(path) == 8
    assert 4 not in path.unit
    assert path.error[-1] < TIGHT


def test_channels_that_nobody_reads_are_chosen_last() -> None:
    """Variance counts as far as consumers read it, directly or through others."""
    rows = orthogonal().rows
    weighting = torch.diag(torch.tensor([1.0, 1, 1, 0, 0, 0], dtype=torch.float64))
    path = choose(Samples(rows, (weighting, weighting)), INFINITE, 1.0)
    assert set(path.unit.tolist()) == {0, 1, 2}
    assert path.error[-1] < TIGHT


def test_a_source_without_any_signal_is_no_obstacle() -> None:
    """Nothing to explain is explained: no division by zero."""
    given = samples()
    rows = given.rows.clone()
    rows[:, 1] = 0.0
    path = choose(Samples(rows, given.weighting), INFINITE, 1.0)
    assert np.isfinite(path.error).all()
    assert set(path.kind.tolist()) == {0}
    assert path.error[-1] < TIGHT


# -- blocks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("prices", [(1.5, 1.0), (INFINITE, 1.0)])
def test_blocks_are_chosen_as_wholes(prices: tuple[float, float]) -> None:
    """Units count blocks, and the error is that of all their channels."""
    given = samples(4, size=12, decay=1.0)
    path = choose(given, *prices, unit=3)
    assert len(path) >= 4
    assert path.unit.max() < 4
    for prefix in range(len(path) + 1):
        assert path.error[prefix] == pytest.approx(
            brute_force(given, path, prefix, unit=3), abs=TIGHT
        )
    assert abs(path.error[1] - brute_force(given, path, 1, unit=1)) > 1e4 * TIGHT  # the control


def test_blocks_of_identical_sources_are_merged() -> None:
    """Every block once, and nothing is left."""
    path = choose(identical(), merged=1.5, single=1.0, unit=2)
    assert (path.kind == MERGED).all()
    assert sorted(path.unit) == [0, 1, 2]
    assert path.error[-1] < TIGHT


def joined(parts: list[Problem]) -> Problem:
    """Groups side by side as one: each unit's channels in a row, nothing between the groups."""
    units, sources = parts[0].units, parts[0].sources
    inner = sum(part.unit for part in parts)
    covariance = torch.zeros(sources, units * inner, sources, units * inner, dtype=torch.float64)
    weighting = torch.zeros(sources, units * inner, units * inner, dtype=torch.float64)
    at = 0
    for part in parts:
        channels = torch.arange(part.size)
        where = channels // part.unit * inner + at + channels % part.unit
        for s, q in enumerate(part.weighting):
            weighting[s, where[:, None], where] = q.whole()
            for t in range(sources):
                covariance[s, :, t][where[:, None], where] = part.tiles[s, :, t]
        at += part.unit
    flat = covariance.reshape(sources * units * inner, -1)
    return Problem(flat, [Matrix(q) for q in weighting], inner)


@pytest.mark.parametrize("prices", [(1.5, 1.0), (INFINITE, 1.0), (1.0, INFINITE)])
def test_groups_of_a_family_are_chosen_as_one_that_nothing_connects(
    prices: tuple[float, float],
) -> None:
    """Their own matrices hold all that the joined one does; one group alone chooses otherwise."""
    parts = [samples(5, size=12).problem(3), samples(6, size=8).problem(2)]
    for emphasis in ((), (1.0, 3.0)):
        found, wanted, alone = (
            select(
                given,
                merged_price=prices[0],
                single_price=prices[1],
                limit=100,
                emphasis=emphasis,
            )
            for given in (parts, [joined(parts)], parts[:1])
        )
        assert (found.kind == wanted.kind).all()
        assert (found.unit == wanted.unit).all()
        assert found.error == pytest.approx(wanted.error, abs=1e-12)
        assert found.error[:3] != pytest.approx(alone.error[:3], abs=1e-3), "negative control"


# -- the bound ------------------------------------------------------------------------------------


def readable(path: Path, prefix: int, source: int) -> int:
    """How many slots of a prefix a source can read."""
    kinds = path.kind[:prefix]
    return int(((kinds == MERGED) | (kinds == source)).sum())


@pytest.mark.parametrize("prices", [(1.0, 1.0), (2.0, 1.0), (INFINITE, 1.0), (1.0, INFINITE)])
def test_no_selection_beats_the_bound(prices: tuple[float, float]) -> None:
    """With the number of slots that each source reads, no channels leave less."""
    for seed in range(5):
        given = samples(seed)
        path = choose(given, *prices)
        for prefix in range(len(path) + 1):
            kept = [readable(path, prefix, s) for s in range(2)]
            assert lower_bound(given.problem(), kept) <= path.error[prefix] + 1e-12
            assert lower_bound(given.problem(), prefix) <= path.error[prefix] + 1e-12


def test_the_bound_is_reached_by_independent_channels() -> None:
    """Negative control: it is no loose bound, and one feature more would break it."""
    given = orthogonal()
    scales = torch.linspace(1, 2, 6, dtype=torch.float64)
    scaled = Samples(given.rows * scales, given.weighting)
    path = choose(scaled, INFINITE, 1.0)
    for prefix in (0, 2, 6, 12):
        kept = [readable(path, prefix, s) for s in range(2)]
        assert lower_bound(scaled.problem(), kept) == pytest.approx(path.error[prefix], abs=TIGHT)
    kept = [readable(path, 6, s) - 1 for s in range(2)]
    assert lower_bound(scaled.problem(), kept) > path.error[6] + 0.01


def test_the_bounds_are_the_spectrum() -> None:
    """From one, without features, down to zero with all of them; the number may be per source."""
    given = samples()
    bounds = lower_bounds(given.problem())
    assert bounds.shape == (2, 7)
    assert (bounds[:, 0] == 1).all()
    assert (bounds[:, -1] == 0).all()
    assert (np.diff(bounds) < 0).all()
    assert lower_bound(given.problem(), 3) == lower_bound(given.problem(), [3, 3])
    x, root = given.rows[:, 0], torch.linalg.cholesky(given.weighting[0])
    singular = torch.linalg.svdvals(x @ root).square()
    expected = float(singular[3:].sum() / singular.sum())
    assert bounds[0, 3] == pytest.approx(expected, rel=TIGHT)


def test_many_twins_in_float32_merge_without_loss() -> None:
    """Statistics of wide groups are float32; merging equal channels is free all the same."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(700, 640, generator=generator).relu()
    rows = rows - rows.mean(0)
    weights = torch.randn(320, 640, generator=generator)
    covariance = (rows.T @ rows / len(rows)).repeat(2, 2)
    for weighting in (Matrix(weights.T @ weights), Root(weights)):
        problem = Problem(covariance, [weighting] * 2)
        path = select([problem], merged_price=1.0, single_price=math.inf, limit=problem.size)
        assert path.error[-1] < 1e-9


@pytest.mark.parametrize("prices", [(1.0, 1.0), (INFINITE, 1.0), (1.0, INFINITE)])
def test_float32_chooses_as_well_and_sees_that_equal_sources_lose_nothing(
    prices: tuple[float, float],
) -> None:
    """Half the time, for plans of wide groups."""
    given = samples(seed=2, size=40, decay=1.0)
    exact = given.problem()
    path = select([exact.in_float32()], merged_price=prices[0], single_price=prices[1], limit=1000)
    assert path.error == pytest.approx(choose(given, *prices).error, abs=1e-4)

    twins = Samples(given.rows[:, :1].expand(-1, 2, -1), given.weighting)
    path = select([twins.problem().in_float32()], merged_price=1.0, single_price=INFINITE, limit=40)
    assert path.error[-1] == 0.0
    path = select([exact.in_float32()], merged_price=1.0, single_price=INFINITE, limit=40)
    assert path.error[-1] > 0.0, "negative control: other sources do lose"


def test_paths_of_one_kind_are_the_same_beside_paths_of_both() -> None:
    """Without candidates of both kinds smaller matrices do."""
    given = samples(seed=3, size=12).problem()
    pure = ((INFINITE, 1.0), (1.0, INFINITE))
    alone = select_all([given], pure, limit=24)
    beside = select_all([given], ((1.0, 1.0), *pure), limit=24)[1:]
    for a, b in zip(alone, beside, strict=True):
        assert (a.kind == b.kind).all()
        assert (a.unit == b.unit).all()
        assert a.error == pytest.approx(b.error, abs=1e-12)


def test_roots_of_what_is_read_give_the_paths_of_the_whole_matrix() -> None:
    """Readers with fewer outputs than inputs; other readers give another path."""
    given = samples(seed=7, size=24)
    generator = torch.Generator().manual_seed(1)
    roots = [torch.randn(5, 24, dtype=torch.float64, generator=generator) for _ in range(2)]
    covariance = given.problem().covariance

    def path(weighting: list[Weighting], prices: tuple[float, float]) -> Path:
        merged, single = prices
        problem = Problem(covariance, weighting)
        return select([problem], merged_price=merged, single_price=single, limit=1000)

    for prices in ((1.0, 1.0), (1.0, INFINITE), (INFINITE, 1.0)):
        found = path([Root(rows) for rows in roots], prices)
        wanted = path([Matrix(rows.T @ rows) for rows in roots], prices)
        assert found.unit.tolist() == wanted.unit.tolist()
        assert found.kind.tolist() == wanted.kind.tolist()
        assert np.abs(found.error - wanted.error).max() < TIGHT
        swapped = path([Root(rows) for rows in roots[::-1]], prices)
        assert swapped.unit.tolist() != wanted.unit.tolist()
    bounds = [
        lower_bounds(Problem(covariance, weighting))
        for weighting in ([Root(r) for r in roots], [Matrix(r.T @ r) for r in roots])
    ]
    assert np.abs(bounds[0] - bounds[1]).max() < TIGHT


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_root_is_the_matrix_that_it_is_the_root_of(dtype: torch.dtype) -> None:
    """Every question that is asked of one, in both forms."""
    rows = torch.randn(4, 9, dtype=torch.float64)
    root, matrix = Root(rows.to(dtype)), Matrix((rows.T @ rows).to(dtype))
    covariance, points = torch.eye(9, dtype=torch.float64) + 0.1, torch.randn(6, 9)
    order = torch.randperm(9)
    close = {"rel": 100 * torch.finfo(dtype).eps}
    assert root.size == matrix.size == 9
    assert root.power(covariance) == pytest.approx(matrix.power(covariance), **close)
    assert root.read(points) == pytest.approx(matrix.read(points), **close)
    more = [added(q, q.times(3.0)).at(order) for q in (root, matrix)]
    assert isinstance(more[0], Root)
    assert float((more[0].whole() - more[1].whole()).abs().max()) < 1e3 * torch.finfo(dtype).eps
    assert float((more[0].diagonal() - 4 * root.diagonal()[order]).abs().max()) < 1e-4
    forms = [torch.zeros(6, 6, dtype=dtype) for _ in range(2)]
    for q, form in zip((root, matrix), forms, strict=True):
        q.add_form(form, points.T.to(dtype))
    assert float((forms[0] - forms[1]).triu().abs().max()) < 1e3 * torch.finfo(dtype).eps
    assert float(forms[0].triu().abs().max()) > 0.1
