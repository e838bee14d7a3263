"""Other weights of sources and groups: which plans are tried, and which one is taken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import pytest

import pleas_fx as pf
from fixtures.load import calibration, sources
from pleas_fx import fitting, settling
from pleas_fx.contest import AFFORDABLE, WORTH, Emphasis, affordable, contest
from pleas_fx.ir import GroupId

EQUAL = Emphasis()
GROUPS = [GroupId(g) for g in range(4)]
MANY = 16  # trials
HALF: dict[str, Any] = {"flops": 0.5, "progress": False, "synthetic": 0}
Forced = Callable[[Emphasis], list[Emphasis]]


@dataclass
class Tried:
    """What each emphasis on sources would leave; others leave everything, 0 is no plan at all."""

    leaves: dict[tuple[float, ...], float]
    tried: list[Emphasis] = field(default_factory=list)

    def attempt(self, emphasis: Emphasis) -> Emphasis | None:
        """Remember what was asked for."""
        self.tried.append(emphasis)
        return None if self.left(emphasis) == 0 else emphasis

    def left(self, emphasis: Emphasis) -> float:
        """Of the outputs."""
        return self.leaves.get(emphasis.sources, 1.0)

    def best(self) -> Emphasis:
        """The search's choice among emphases on sources."""
        return contest(EQUAL, 3, GROUPS, self.attempt, self.left, seed=0, trials=0)


def test_the_source_whose_emphasis_leaves_least_is_followed() -> None:
    """Twice each in turn, then more of the best until that doesn't help."""
    trials = Tried({(): 0.5, (2, 1, 1): 0.45, (1, 2, 1): 0.4, (1, 4, 1): 0.3, (1, 8, 1): 0.6})
    assert trials.best().sources == (1, 4, 1)
    expected = [(2, 1, 1), (1, 2, 1), (1, 1, 2), (1, 4, 1), (1, 8, 1)]
    assert [emphasis.sources for emphasis in trials.tried] == expected


def test_nothing_is_changed_for_a_hair() -> None:
    """Less than a hundredth of the outputs isn't worth an unequal plan; control: a little more."""
    trials = Tried({(): 0.05, (2, 1, 1): 0.051 - WORTH})
    assert trials.best() == EQUAL
    assert len(trials.tried) == 3
    assert Tried({(): 0.05, (2, 1, 1): 0.049 - WORTH}).best().sources == (2, 1, 1)


def test_nothing_is_tried_where_little_is_left() -> None:
    """The outputs are as good as the sources'; nor where what is left isn't known."""
    for left in (WORTH / 2, float("nan")):
        trials = Tried({(): left, (2, 1, 1): 0.0001})
        assert trials.best() == EQUAL
        assert trials.tried == []


def test_an_emphasis_without_a_plan_is_passed_over() -> None:
    """The budget can't be met with it."""
    trials = Tried({(): 0.5, (2, 1, 1): 0.0, (1, 1, 2): 0.4, (1, 1, 4): 0.0})
    assert trials.best().sources == (1, 1, 2)


def test_groups_are_weighed_from_the_best_so_far() -> None:
    """What is left falls towards the weights that leave nothing; the same seed tries the same."""

    def left(emphasis: Emphasis) -> float:
        found = [emphasis.groups.get(g, 1.0) for g in GROUPS]
        return fmean(
            abs(weight - wanted) for weight, wanted in zip(found, (3, 1, 1, 0.3), strict=True)
        )

    def searched(seed: int, trials: int = 4) -> tuple[Emphasis, list[Emphasis]]:
        tried: list[Emphasis] = []

        def attempt(emphasis: Emphasis) -> Emphasis:
            tried.append(emphasis)
            return emphasis

        return contest(EQUAL, 2, GROUPS, attempt, left, seed=seed, trials=trials), tried

    first, tried = searched(0, MANY)
    assert left(first) == min(map(left, tried)) < 0.8 * left(EQUAL)
    assert len(tried) == 2 + MANY
    assert left(searched(0, 10 * MANY)[0]) < 0.8 * left(first)
    assert searched(0) == searched(0)
    assert searched(0) != searched(1)


def test_only_small_networks_are_tried_out() -> None:
    """By FLOPs of all images, and by the widest group."""
    assert affordable(AFFORDABLE // 1000, 1000, [512])
    assert not affordable(AFFORDABLE // 1000, 1001, [512])
    assert not affordable(1, 1, [64, 513])


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch) -> Forced:
    """Makes one emphasis win, whatever is left; gives the list of those that were tried."""

    def force(emphasis: Emphasis) -> list[Emphasis]:
        tried: list[Emphasis] = []

        def always(*given: Any, **_: object) -> Any:
            tried.append(emphasis)
            return given[3](emphasis)

        monkeypatch.setattr(settling, "contest", always)
        return tried

    return force


def merged(images: int = 128, **options: Any) -> pf.MergeResult:
    """The fixtures' networks at half of one network's FLOPs."""
    data = pf.PerSource([own[:images] for own in calibration()])
    return pf.merge(list(sources()), data, **HALF | options)


def kept(plan: pf.Plan, source: int) -> int:
    """Channels of a source that have a slot."""
    return sum(group.size - len(group.dropped[source]) for group in plan.groups)


def within(result: pf.MergeResult) -> bool:
    """Whether the emitted network meets the budget."""
    return result.report.merged.flops <= 0.500001 * result.report.sources[0].flops


def test_a_source_that_counts_more_keeps_more(forced: Forced) -> None:
    """Within the same budget; ``plan`` says the same as ``merge``, and so does its note."""
    emphasis = Emphasis((1.0, 4.0))
    tried = forced(emphasis)
    result = merged()
    data = pf.PerSource([own[:128] for own in calibration()])
    planned = pf.plan(list(sources()), data, **HALF)
    assert tried == [emphasis] * 2
    assert kept(result.plan, 1) > kept(result.plan, 0)
    assert within(result)
    assert "errors of source B count 4 times" in result.plan.note
    assert str(planned) == str(result.plan)


def test_the_contested_plan_is_what_is_judged_beside_a_source_alone(forced: Forced) -> None:
    """With shared outputs; it is taken here, and its note stands before the judge's."""
    forced(Emphasis((1.0, 4.0)))
    result = merged(heads="shared", flops=1.0)
    note = result.plan.note
    assert "all sources" in note
    assert "alone" in note
    taken = note.startswith("errors of source B count 4 times")
    assert taken
    assert taken == (kept(result.plan, 0) > 0 < kept(result.plan, 1))


def test_a_group_that_counts_more_keeps_more(forced: Forced) -> None:
    """Within the same budget, which the other groups pay for; the control has equal weights."""
    equal = merged(trials=0).plan
    heavy = max((g for g in equal.groups if g.slots < g.size), key=lambda g: g.size).group
    forced(Emphasis(groups={heavy: 20.0}))
    result = merged()
    before, after = ({g.group: g.slots for g in p.groups} for p in (equal, result.plan))
    assert after[heavy] > before[heavy]
    assert sum(after.values()) - after[heavy] < sum(before.values()) - before[heavy]
    assert within(result)
    assert "errors of groups count 20 to 20 times" in result.plan.note


def test_no_emphasis_is_tried_for_widths_or_other_methods(forced: Forced) -> None:
    """They say themselves how much of every source there is; nor where it isn't asked for."""
    tried = forced(EQUAL)
    merged(64, flops=None, width=1.0)
    merged(64, method="side-by-side")
    merged(64, trials=0)
    assert tried == []


def test_trials_are_fitted_to_some_images_and_the_best_to_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """More images than tell plans apart cost one fit."""
    seen: list[int] = []
    fit = fitting.fit

    def counted(programs: Any, rewritten: Any, batches: Any, *rest: Any, **named: Any) -> object:
        seen.append(sum(len(batch[0]) for batch in batches))
        return fit(programs, rewritten, batches, *rest, **named)

    monkeypatch.setattr(fitting, "fit", counted)
    monkeypatch.setattr(fitting, "IMAGES", 32)
    assert within(merged(128, flops=0.15, trials=2))
    assert seen[-1] == 256
    assert set(seen[:-1]) == {64}
    assert len(seen) >= 1 + 2 + 2 + 1  # equal, each source, two of groups, and the best


@pytest.mark.parametrize(("images", "trials", "drawn"), [(64, 5, 5), (63, 5, 0), (64, None, 0)])
def test_groups_are_drawn_on_request_and_where_images_tell(
    monkeypatch: pytest.MonkeyPatch, images: int, trials: int | None, drawn: int
) -> None:
    """At least 64 of each source."""
    asked: list[int] = []

    def watched(first: object, *_: object, trials: int, **__: object) -> object:
        asked.append(trials)
        return first

    monkeypatch.setattr(settling, "contest", watched)
    merged(images, trials=trials)
    assert asked == [drawn]


def test_more_trials_leave_less() -> None:
    """On the images that are fitted to, at the same cost; and two runs agree to the bit."""
    one, more, again = (merged(64, flops=0.25, trials=n) for n in (0, 8, 8))
    left = [max(fit.residual for fit in r.report.layers[-2:]) for r in (one, more)]
    assert left[1] < 0.97 * left[0]
    for first, second in zip(more.model.parameters(), again.model.parameters(), strict=True):
        assert first.equal(second)


def test_fewer_than_none_are_refused() -> None:
    """One clear error."""
    with pytest.raises(pf.OptionError, match="trials"):
        merged(8, trials=-1)
