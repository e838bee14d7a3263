"""Which groups have to stay whole, found by trying; sets that never meet are tried together."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import pytest

from passes import probe
from passes.groups import groups
from passes.lower import lower
from passes.observe import planned_groups
from passes.trace import trace
from pleas_fx.heads import given_lanes
from pleas_fx.ir import GroupId, Lane, Program, Symmetry, everyone
from tests.networks import NETWORKS

Given = Mapping[GroupId, tuple[Lane, ...]]


def analysed(name: str) -> tuple[list[Program], list[Symmetry], Given]:
    """Two sources of the same network, and the lanes of their own outputs."""
    network = NETWORKS[name]
    program = lower(trace(network.make(0), network.inputs()))
    programs, symmetries = [program] * 2, [groups(program)] * 2
    return programs, symmetries, given_lanes(programs, symmetries, "separate", None)


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[Mapping[GroupId, tuple[Lane, ...]]]:
    """The lanes of every trial."""
    seen: list[Mapping[GroupId, tuple[Lane, ...]]] = []
    rewrite = probe.rewrite

    def watched(programs: object, symmetries: object, lanes: Given, *, heads: str) -> object:
        seen.append(lanes)
        return rewrite(programs, symmetries, lanes, heads=heads)  # type: ignore[arg-type]

    monkeypatch.setattr(probe, "rewrite", watched)
    return seen


def merged(lanes: Given, whole: frozenset[GroupId]) -> bool:
    """Whether a set that stays whole is merged."""
    (found,) = {lanes[g][0].membership == everyone(2) for g in whole}
    return found


@pytest.mark.parametrize("name", ["squeezenet", "se_resnet", "efficientnet"])
def test_sets_that_never_meet_share_their_trials(name: str, trials: list[Given]) -> None:
    """All merged once, all apart once."""
    assert probe.probe(*analysed(name), heads="separate") == ()
    assert len(trials) == 2


def combinations_seen(name: str, trials: list[Given]) -> list[int]:
    """For every two sets that meet: how many combinations there were since the last refusal."""
    programs, symmetries, given = analysed(name)
    whole = probe.probe(programs, symmetries, given, heads="separate")
    decided = planned_groups(symmetries[0])
    places = frozenset(probe._places(programs[0], symmetries[0]))
    last = trials[-probe._trials(probe._numbers(decided, whole, given, places)) :]
    return [
        len({(merged(lanes, a), merged(lanes, b)) for lanes in last})
        for a, b in combinations(probe._sets(decided, whole, given), 2)
        if any(a & place and b & place for place in places)
    ]


@pytest.mark.parametrize("name", ["shufflenet_v2", "regnet", "weight_standardised"])
def test_sets_that_meet_are_seen_in_every_combination(
    name: str, trials: list[Given], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Merged or apart; the control has one number for all sets."""
    seen = combinations_seen(name, trials)
    assert seen
    assert set(seen) == {4}
    numbers = probe._numbers
    monkeypatch.setattr(probe, "_numbers", lambda *given: dict.fromkeys(numbers(*given), 0))
    assert set(combinations_seen(name, trials)) == {2}


@pytest.mark.parametrize(
    "name",
    "shufflenet_v2 channel_shuffle grouped gated crossed_blocks cross_channel padded_shortcut "
    "split_attention lambda wrapped_attention mixer sort".split(),
)
def test_as_much_is_found_as_with_numbers_of_their_own(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all sets are taken to meet; some groups have to stay whole in each of these."""
    found = probe.probe(*analysed(name), heads="separate")
    everything = lambda _, symmetry: [frozenset(g.id for g in planned_groups(symmetry))]  # noqa: E731
    monkeypatch.setattr(probe, "_places", everything)
    assert set(found) == set(probe.probe(*analysed(name), heads="separate"))
    assert found
