"""The mathematics of the accuracy benchmark's rivals, on networks where the answer is known."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pleas_fx as pf
from benchmarks.accuracy.evaluate import mean_logits, mean_probabilities, more_confident
from benchmarks.accuracy.records import Record, Records
from benchmarks.accuracy.rivals.aligned import Request
from benchmarks.accuracy.rivals.permutation import permutation
from benchmarks.accuracy.rivals.published_adam import published_adam
from benchmarks.accuracy.rivals.refit import merged_refit
from benchmarks.accuracy.rivals.regmean import regmean, regression_mean
from benchmarks.accuracy.rivals.zipit import greedy, merging, undoing, zipit
from fixtures.resnet import SmallResNet
from tests.randomise import seeded

CLOSE = 1e-4  # relative; float32 networks whose statistics are recomputed batch by batch


def images(count: int, seed: int = 0) -> Tensor:
    """Standard normal images."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, 12, 12, generator=generator)


def network(seed: int) -> nn.Module:
    """A small residual network with random weights."""
    return seeded(lambda: SmallResNet(5, widths=(4, 6, 8), blocks=1), seed)


def with_own_statistics(model: nn.Module, x: Tensor) -> nn.Module:
    """Running statistics as the rivals recompute them: the mean over batches of 64."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        for batch in x.split(64):
            model(batch)
    return model.eval()


@pytest.fixture(scope="module")
def planted() -> tuple[nn.Module, nn.Module, Tensor]:
    """A network, a randomly permuted copy of it, and data its statistics belong to."""
    x = images(192)
    model = with_own_statistics(network(0), x)
    symmetry = pf.permutation_groups(model, x[:2])
    return model, symmetry.apply(model, symmetry.random(3)), x


def request(models: tuple[nn.Module, ...], x: object, heads: str = "shared") -> Request:
    """What a rival is asked."""
    return Request(models, x, heads, None, 0, images(2))


def difference(model: nn.Module, other: nn.Module, x: Tensor) -> float:
    """Relative distance of outputs."""
    with torch.no_grad():
        expected = other(x)
        return float((model(x) - expected).norm() / expected.norm())


@pytest.mark.parametrize("on", ["activations", "weights"])
def test_permutation_recovers_a_planted_one(
    planted: tuple[nn.Module, nn.Module, Tensor], on: str
) -> None:
    """Averaging a network with its permuted copy gives the network; unmatched it doesn't."""
    model, copy, x = planted
    assert difference(permutation(request((model, copy), x), on), model, x) < CLOSE
    assert difference(permutation(request((model, copy), x), ""), model, x) > 0.1


def test_zipit_recovers_a_permuted_copy(planted: tuple[nn.Module, nn.Module, Tensor]) -> None:
    """Each channel's nearest one is its copy, so zipping changes nothing."""
    model, copy, x = planted
    assert difference(zipit(request((model, copy), x)), model, x) < CLOSE


def test_merged_refit_recovers_a_permuted_copy(
    planted: tuple[nn.Module, nn.Module, Tensor],
) -> None:
    """A fit of what is exact already changes nothing."""
    model, copy, x = planted
    assert difference(merged_refit(request((model, copy), x)), model, x) < CLOSE


def test_adam_starts_at_the_average_and_moves_away() -> None:
    """No step leaves the permuted average; steps change it."""
    x = images(192)
    models = tuple(with_own_statistics(network(seed), x) for seed in (0, 1))
    start = published_adam(request(models, x), steps=0)
    assert difference(start, permutation(request(models, x), "activations"), x) < 1e-6
    moved = published_adam(request(models, x), steps=20)
    assert difference(moved, start, x) > 1e-3


def test_separate_heads_read_the_same_trunk(
    planted: tuple[nn.Module, nn.Module, Tensor],
) -> None:
    """With own outputs every rival returns one a source, equal to the sources' for a copy."""
    model, copy, x = planted
    for rival in (zipit, regmean):
        merged = rival(request((model, model if rival is regmean else copy), x, "separate"))
        with torch.no_grad():
            outputs, expected = merged(x), model(x)
        assert len(outputs) == 2
        for output in outputs:
            assert float((output - expected).norm() / expected.norm()) < CLOSE


def test_greedy_merges_within_a_model() -> None:
    """Two equal channels of one model go together before two similar ones of different models."""
    similarity = np.array(
        [[1.0, 0.99, 0.1, 0.0], [0.99, 1.0, 0.1, 0.0], [0.1, 0.1, 1.0, 0.5], [0.0, 0.0, 0.5, 1.0]]
    )
    clusters = greedy(similarity, 2, 2)
    assert clusters[0, 0] == clusters[0, 1] != clusters[1, 0] == clusters[1, 1]


def test_merging_averages_and_undoing_copies() -> None:
    """M of all sources sums to one for each merged channel; M U is the identity in sum."""
    clusters = np.array([[0, 0, 2], [2, 1, 1]])
    parts = [merging(clusters, s) for s in (0, 1)]
    assert torch.allclose(sum(parts).sum(1), torch.ones(3, dtype=torch.float64))  # type: ignore[union-attr]
    back = sum(parts[s] @ undoing(clusters, s) for s in (0, 1))
    assert torch.allclose(torch.as_tensor(back), torch.eye(3, dtype=torch.float64))


def test_regression_mean_is_the_least_squares_solution() -> None:
    """It minimises the summed squared distance to both linear maps on their own inputs."""
    rng = np.random.default_rng(0)
    xs = [rng.normal(size=(40, 5)), rng.normal(size=(60, 5))]
    ws = [rng.normal(size=(3, 5)) for _ in xs]
    expected, *_ = np.linalg.lstsq(
        np.concatenate(xs), np.concatenate([x @ w.T for x, w in zip(xs, ws, strict=True)]), None
    )
    found = regression_mean(
        [torch.from_numpy(x.T @ x) for x in xs], [torch.from_numpy(w) for w in ws]
    )
    assert np.allclose(found.numpy().T, expected, atol=1e-6)  # the solver's damping is 1e-8


def test_regmean_of_linear_networks_is_least_squares() -> None:
    """Through the whole harness: one linear layer, two sources, own data."""
    torch.manual_seed(0)
    models = tuple(nn.Sequential(nn.Flatten(), nn.Linear(9, 4)).eval() for _ in range(2))
    xs = [torch.randn(50, 1, 3, 3), 2 * torch.randn(50, 1, 3, 3)]
    asked = Request(models, pf.PerSource(xs), "shared", None, 0, xs[0][:2])
    merged = regmean(asked, alpha=1.0)
    rows = torch.cat([x.flatten(1) for x in xs]).double()
    rows = torch.cat([rows, torch.ones(100, 1, dtype=torch.float64)], 1)
    with torch.no_grad():
        targets = torch.cat([m(x) for m, x in zip(models, xs, strict=True)]).double()
        expected = rows @ torch.linalg.lstsq(rows, targets).solution
        made = merged(torch.cat(xs)).double()
    assert float((made - expected).norm() / expected.norm()) < 1e-5


def test_ensembles_use_only_those_that_know_a_class() -> None:
    """Classes 0, 1 of one source and 1, 2 of another."""
    outputs = (torch.tensor([[0.0, 2.0]]), torch.tensor([[4.0, 1.0]]))
    places = ((0, 1), (1, 2))
    assert mean_logits(outputs, places, 3).tolist() == [[0.0, 3.0, 1.0]]
    first, second = outputs[0].softmax(1)[0], outputs[1].softmax(1)[0]
    mean = mean_probabilities(outputs, places, 3)[0]
    assert torch.allclose(mean, torch.stack([first[0], (first[1] + second[0]) / 2, second[1]]))
    best = more_confident(outputs, places, 3)[0]
    assert torch.allclose(
        best, torch.stack([first[0], torch.maximum(first[1], second[0]), second[1]])
    )


def test_records_resume(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """What was measured is known to the next run."""

    class Case:
        key = ("s", "a", 0, "m", 1.0)

    record = Record("s", "a", 0, "m", 1.0, 0.5, (0.4, 0.6), 1.0, 0.9, 2.0)
    Records(tmp_path / "records.jsonl").add(Case(), [record])
    again = Records(tmp_path / "records.jsonl")
    assert Case() in again
    assert list(again) == [record]


def test_records_of_an_earlier_version_of_a_method_are_left_out(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """They are measured again; those of other methods stay."""
    path = tmp_path / "records.jsonl"
    for method in ("m", "other"):
        record = Record("s", "a", 0, method, 1.0, 0.5, (0.5,), 1.0, 1.0, 0.0)
        Records(path).add(SimpleNamespace(key=("s", "a", 0, method, 1.0)), [record])
    later = Records(path, {"m": 2})
    assert [record.method for record in later] == ["other"]
    assert SimpleNamespace(key=("s", "a", 0, "m", 1.0)) not in later
    later.add(SimpleNamespace(key=("s", "a", 0, "m", 1.0)), [replace(record, method="m")])
    assert [record.method for record in Records(path, {"m": 2})] == ["other", "m"]
    assert [record.method for record in Records(path)] == ["m", "other"]
