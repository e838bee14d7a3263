"""Sources whose errors count more: which plans are tried, and which one is taken."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

import pleas_fx as pf
from fixtures.load import calibration, sources
from pleas_fx import compiler
from pleas_fx.emphasis import AFFORDABLE, WORTH, Emphasis, affordable, balanced

EQUAL: Emphasis = (1.0, 1.0, 1.0)


@dataclass
class Trials:
    """What each emphasis would leave; others leave everything, 0 is no plan at all."""

    leaves: dict[Emphasis, float]
    tried: list[Emphasis] = field(default_factory=list)

    def attempt(self, emphasis: Emphasis) -> Emphasis | None:
        """Remember what was asked for."""
        self.tried.append(emphasis)
        return None if self.left(emphasis) == 0 else emphasis

    def left(self, emphasis: Emphasis) -> float:
        """Of the outputs."""
        return self.leaves.get(emphasis, 1.0)

    def best(self) -> Emphasis:
        """The search's choice."""
        return balanced(EQUAL, 3, self.attempt, self.left)


def test_the_source_whose_emphasis_leaves_least_is_followed() -> None:
    """Twice each in turn, then more of the best until that doesn't help."""
    trials = Trials({EQUAL: 0.5, (2, 1, 1): 0.45, (1, 2, 1): 0.4, (1, 4, 1): 0.3, (1, 8, 1): 0.6})
    assert trials.best() == (1, 4, 1)
    assert trials.tried == [(2, 1, 1), (1, 2, 1), (1, 1, 2), (1, 4, 1), (1, 8, 1)]


def test_nothing_is_changed_for_a_hair() -> None:
    """Less than a hundredth of what is left isn't worth an unequal plan."""
    trials = Trials({EQUAL: 0.5, (2, 1, 1): 0.499})
    assert trials.best() == EQUAL
    assert len(trials.tried) == 3


def test_nothing_is_tried_where_little_is_left() -> None:
    """The outputs are as good as the sources'; nor where what is left isn't known."""
    for left in (WORTH / 2, float("nan")):
        trials = Trials({EQUAL: left, (2, 1, 1): 0.0001})
        assert trials.best() == EQUAL
        assert trials.tried == []


def test_an_emphasis_without_a_plan_is_passed_over() -> None:
    """The budget can't be met with it."""
    assert Trials({EQUAL: 0.5, (2, 1, 1): 0.0, (1, 1, 2): 0.4, (1, 1, 4): 0.0}).best() == (1, 1, 2)


def test_only_small_networks_are_tried_out() -> None:
    """By FLOPs of all images, and by the widest group."""
    assert affordable(AFFORDABLE // 1000, 1000, [512])
    assert not affordable(AFFORDABLE // 1000, 1001, [512])
    assert not affordable(1, 1, [64, 513])


@pytest.fixture
def two_emphases(monkeypatch: pytest.MonkeyPatch) -> list[Emphasis]:
    """Source B counts four times, whatever is left; what was tried."""
    tried: list[Emphasis] = []

    def forced(first: object, sources: int, attempt: object, left: object) -> object:
        tried.append((1.0, 4.0))
        return attempt((1.0, 4.0))  # type: ignore[operator]

    monkeypatch.setattr(compiler, "balanced", forced)
    return tried


def options() -> dict[str, object]:
    """Half of one network's FLOPs, few images."""
    return {"flops": 0.5, "progress": False, "synthetic": 0}


def kept(plan: pf.Plan, source: int) -> int:
    """Channels of a source that have a slot."""
    return sum(group.size - len(group.dropped[source]) for group in plan.groups)


def test_a_source_that_counts_more_keeps_more(two_emphases: list[Emphasis]) -> None:
    """Within the same budget; ``plan`` says the same as ``merge``, and so does its note."""
    data = pf.PerSource([own[:128] for own in calibration()])
    models = list(sources())
    result = pf.merge(models, data, **options())  # type: ignore[arg-type]
    planned = pf.plan(models, data, **options())  # type: ignore[arg-type]
    assert two_emphases == [(1.0, 4.0)] * 2
    assert kept(result.plan, 1) > kept(result.plan, 0)
    assert result.report.merged.flops <= 0.500001 * result.report.sources[0].flops
    assert "errors of source B count 4 times" in result.plan.note
    assert str(planned) == str(result.plan)


def test_no_emphasis_is_tried_for_widths_or_other_methods(two_emphases: list[Emphasis]) -> None:
    """They say themselves how much of every source there is."""
    data = pf.PerSource([own[:64] for own in calibration()])
    pf.merge(list(sources()), data, width=1.0, progress=False)
    pf.merge(list(sources()), data, **options(), method="side-by-side")  # type: ignore[arg-type]
    assert two_emphases == []
