"""What tells classes apart may be said in short where a place has very many labels."""

from __future__ import annotations

import numpy as np
import pytest

from passes.groups import groups
from passes.lower import lower
from passes.trace import trace
from pleas_fx import classes
from pleas_fx.ir import Axis, IntArray, Symmetry
from tests.networks import NETWORKS, Network

every_network = pytest.mark.parametrize("network", NETWORKS.values(), ids=str)


def kinds(found: Symmetry) -> dict[Axis, tuple[IntArray, IntArray]]:
    """The group and the channel of every place of every axis."""
    layout = found.layout
    return {axis: (layout.group[own], layout.channel[own]) for axis, own in layout.axes.items()}


def same(one: Symmetry, other: Symmetry) -> bool:
    """Whether two analyses found the same groups."""
    first, second = kinds(one), kinds(other)
    return first.keys() == second.keys() and all(
        np.array_equal(a, b)
        for axis in first
        for a, b in zip(first[axis], second[axis], strict=True)
    )


@every_network
def test_groups_are_the_same_where_every_place_counts_as_large(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As small networks have no large places, all of them are taken for such."""
    program = lower(trace(network.make(0), network.inputs()))
    found = groups(program)
    monkeypatch.setattr(classes, "MANY", 1)
    assert same(found, groups(program))


def test_a_label_of_every_place_would_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: places of several classes need all of theirs."""
    network = NETWORKS["resnet"]
    program = lower(trace(network.make(0), network.inputs()))
    found = groups(program)
    monkeypatch.setattr(classes, "_telling", lambda labels, _: labels[:1])
    assert not same(found, groups(program))
