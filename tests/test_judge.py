"""Judging answers by what the sources say: rights, wrongs, and why equal answers aren't counted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from passes.judge import Answers, expected, score

SURE = 20.0


def logits(classes: list[int], of: int = 3, height: float = SURE) -> Tensor:
    """One row an example, all on its class."""
    return height * torch.eye(of)[classes]


def batch(*outputs: Tensor) -> Answers:
    """One batch."""
    return (outputs,)


def test_answers_that_the_sources_are_sure_of_score_one_and_others_nothing() -> None:
    """Two right of four."""
    found = batch(logits([0, 1, 2, 0]))
    assert score(found, batch(logits([0, 1, 0, 2]))) == pytest.approx(0.5, abs=1e-6)
    assert score(found, found) == pytest.approx(1.0, abs=1e-6)


def test_where_the_sources_waver_a_wrong_answer_costs_little() -> None:
    """The second class is nearly as probable as the first."""
    wanted = batch(torch.tensor([[1.0, 0.9, -9.0]]))
    best, second, last = (score(batch(logits([k])), wanted) for k in range(3))
    assert 0 < best - second < 0.06
    assert second - last > 0.4


def test_the_owner_counts_beside_the_mean_on_its_own_batches() -> None:
    """Batch 0 is source 1's, batch 1 nobody's."""
    first: Answers = ((torch.full((2, 3), 1.0),), (torch.full((2, 3), 1.0),))
    second: Answers = ((torch.full((2, 3), 5.0),), (torch.full((2, 3), 5.0),))
    found = expected([first, second], (1, None))
    assert torch.equal(found[0][0], torch.full((2, 3), 4.0))
    assert torch.equal(found[1][0], torch.full((2, 3), 3.0))


def test_other_outputs_score_by_their_relative_squared_error() -> None:
    """Maps and single numbers aren't classes."""
    for shape in ((40, 3, 5, 5), (40, 1), (40,)):
        wanted = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        assert score(batch(wanted), batch(wanted)) == 1.0
        assert score(batch(wanted.mean(0).expand(shape)), batch(wanted)) == pytest.approx(0.0)
        assert score(batch(-wanted), batch(wanted)) < -1.0


def test_several_outputs_count_alike() -> None:
    """One right, one wrong."""
    found, wanted = batch(logits([0]), logits([1])), batch(logits([0]), logits([2]))
    assert score(found, wanted) == pytest.approx(0.5, abs=1e-6)


def test_an_ensemble_beats_its_members_which_equal_answers_would_hide() -> None:
    """Two noisy sources, the first half of the images the first one's."""
    random = torch.Generator().manual_seed(0)
    truth = logits(torch.randint(0, 3, (4000,), generator=random).tolist(), height=1.5)
    a, b = (truth + torch.randn(truth.shape, generator=random) for _ in range(2))
    split = [tuple((part,) for part in x.chunk(2)) for x in (a, b)]
    wanted = (split[0][0], split[1][1])
    together = tuple(((x[0] + y[0]) / 2,) for x, y in zip(*split, strict=True))
    assert score(together, wanted) > max(score(own, wanted) for own in split) + 0.005
    assert _equal(together, wanted) < _equal(split[0], wanted)


def _equal(found: Answers, wanted: Answers) -> float:
    """Share of equal answers."""
    pairs = zip(found, wanted, strict=True)
    return float(torch.cat([x[0].argmax(1) == y[0].argmax(1) for x, y in pairs]).double().mean())
