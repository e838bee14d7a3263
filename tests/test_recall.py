"""Expensive operators run once, however many rounds the analysis of groups takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Set
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from passes import groups
from passes.lower import lower
from passes.trace import trace
from pleas_fx import recall
from pleas_fx.classes import Facts, alone
from pleas_fx.ir import Axis
from pleas_fx.recall import EXPENSIVE, Recall
from tests.networks import NETWORKS

MM = torch.ops.aten.mm.default
A, B = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(3, 4)


class Counting(TorchDispatchMode):
    """Counts operators that really run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.runs: Counter[object] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """As usual."""
        self.runs[func] += 1
        return func(*args, **(kwargs or {}))


def twice(recalled: Recall, left: Tensor = A) -> Tensor:
    """A product that the first run changes in place, as the second run gets it."""
    recalled.execute(MM, (left, B), {}).zero_()
    recalled.rewind()
    found: Tensor = recalled.execute(MM, (left, B), {})
    return found


def test_what_was_changed_in_place_is_given_as_it_was_made() -> None:
    """And every time."""
    recalled = Recall()
    assert torch.equal(twice(recalled), A @ B)
    recalled.rewind()
    assert torch.equal(twice(recalled), A @ B)


def test_it_runs_once_where_there_is_room_for_what_it_gives() -> None:
    """The control has none."""
    for room, runs in ((64, 1), (4, 2)):
        with Counting() as counting:
            found = twice(Recall(room))
        assert torch.equal(found, A @ B)
        assert counting.runs[MM] == runs


@pytest.mark.parametrize("name", ["pixel_shuffle", "swin"])
def test_groups_are_the_same_and_every_layer_runs_once(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In networks that take several rounds: without room every round runs them all."""
    network = NETWORKS[name]
    program = lower(trace(network.make(0), network.inputs()))

    def analysed(room: int) -> tuple[list[tuple[Any, ...]], int]:
        monkeypatch.setattr(groups, "Recall", lambda: Recall(room))
        with Counting() as counting:
            found = groups.groups(program)
        outline = [(g.id, g.size, g.axes) for g in (*found.groups, *found.fixed)]
        return outline, sum(counting.runs[func] for func in EXPENSIVE)

    (kept, once), (again, often) = analysed(recall.ROOM), analysed(0)
    assert kept == again
    assert often >= 2 * once


@pytest.mark.parametrize("name", ["swin", "mixer", "queries", "registers"])
def test_labels_that_outlive_what_isnt_a_channel_give_the_same_groups(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where positions move with nothing else, the next round starts from what is known."""
    network = NETWORKS[name]
    program = lower(trace(network.make(0), network.inputs()))
    kept: list[bool] = []

    def noted(facts: Facts, axes: Set[Axis]) -> bool:
        kept.append(alone(facts, axes))
        return kept[-1]

    def analysed(rule: Callable[[Facts, Set[Axis]], bool]) -> list[tuple[Any, ...]]:
        monkeypatch.setattr(groups, "alone", rule)
        found = groups.groups(program)
        return [(g.size, g.axes) for g in (*found.groups, *found.fixed)]

    assert analysed(noted) == analysed(lambda facts, axes: not axes)
    assert any(kept)
