"""Tokens are positions, whether a layer mixes them or a table stands beside them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pleas_fx as pf
from passes.groups import Groups
from passes.trace import trace
from pleas_fx.budget import Budget
from pleas_fx.ir import Axis, Symmetry
from pleas_fx.prepare import Prepared, prepare
from pleas_fx.request import Clock, Options
from pleas_fx.rules.relayout import Counter
from tests.networks import NETWORKS, noise
from tests.small_networks import CLASSES, pooled


def analysed(name: str) -> Symmetry:
    """The symmetry of one of the small networks."""
    network = NETWORKS[name]
    return Groups().run(trace(network.make(0), network.inputs()))


def sizes(symmetry: Symmetry) -> list[int]:
    """Of the movable groups."""
    return sorted(g.size for g in symmetry.groups)


def test_tokens_that_a_layer_mixes_carry_no_labels() -> None:
    """Channels move; the layer's output axes aren't theirs, nor are they frozen channels."""
    symmetry = analysed("token_gate")
    assert sizes(symmetry) == [8, 9]
    tokens = {Axis("mix.weight", 0), Axis("mix.bias", 0), Axis("again.weight", 0)}
    assert not tokens & symmetry.layout.axes.keys()


def test_hidden_channels_of_a_token_layer_move() -> None:
    """They are channels like any other."""
    symmetry = analysed("mixer")
    assert sizes(symmetry) == [6, 8, 10]
    assert Axis("mix.weight", 0) in next(g.axes for g in symmetry.groups if g.size == 6)


def test_registers_carry_no_labels() -> None:
    """Nothing tells three registers and sixteen tokens apart but their place."""
    symmetry = analysed("registers")
    assert Axis("registers", 1) not in symmetry.layout.axes
    assert sizes(symmetry) == [8, 8, 8]


def test_heads_that_constants_turn_move_whole() -> None:
    """Their norms' weights are positions, as are the sides of the table and the constants."""
    symmetry = analysed("rotary")
    assert sizes(symmetry) == [3, 8, 12]  # heads of queries, the stream, channels of values
    own = {axis.key for axis in symmetry.layout.axes}
    assert not own & {"query_norm.weight", "key_norm.weight", "rates"}
    assert Axis("places", 0) not in symmetry.layout.axes


def prepared(name: str) -> Prepared:
    """Two of the small networks, ready to be planned."""
    network, options = NETWORKS[name], Options(Budget(width=1.0))
    return prepare([network.make(s) for s in (0, 1)], network.inputs(), options, Clock())


@pytest.mark.parametrize("name", ["rotary", "relative"])
def test_nothing_is_all_merged_or_all_apart(name: str) -> None:
    """Neither by a norm inside of heads, nor a table that gives its type, nor a shared width."""
    found = prepared(name)
    assert found.whole == ()
    assert found.notes == ()


def test_a_width_read_off_other_channels_is_restated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The heads' channels are as many as the stream's in the sources, but not in every lane."""
    given = Counter.restated

    def literals(self: Counter, dim: int, size: Any) -> Any:
        return given(self, dim, size) if isinstance(size, int) else size

    monkeypatch.setattr(Counter, "restated", literals)  # the control
    assert any(len(together) > 1 for together in prepared("relative").whole)


class BesideNet(nn.Module):
    """Learned maps beside the images, as further channels."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Parameter(torch.zeros(1, 5, 6, 6))
        self.conv, self.fc = nn.Conv2d(8, 7, 3), nn.Linear(7, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat((x, self.maps.expand(x.shape[0], -1, -1, -1)), 1)
        return self.fc(pooled(self.conv(x)))


def test_a_table_that_is_joined_as_channels_keeps_its_labels() -> None:
    """A layer reads it by channel: it moves with the layer's input axis."""
    symmetry = Groups().run(trace(BesideNet(), noise((2, 3, 6, 6))))
    assert sizes(symmetry) == [5, 7]
    maps = next(g.axes for g in symmetry.groups if g.size == 5)
    assert set(maps) == {Axis("maps", 1), Axis("conv.weight", 1)}


def test_hidden_channels_of_a_token_layer_stay_with_those_beside() -> None:
    """Both are in one value, so that they are all merged or all apart; others may be mixed."""
    network = NETWORKS["mixer"]
    models = [network.make(seed) for seed in range(2)]
    result = pf.merge(
        models, None, width=1.5, heads="separate", example_inputs=network.inputs(), progress=False
    )
    groups = result.plan.groups
    lanes = {g.size: [(len(lane), int(lane.membership)) for lane in g.lanes] for g in groups}
    assert lanes[6] in ([(6, 3)], [(6, 1), (6, 2)])
    assert [n // 6 for n, _ in lanes[6]] == [n // 8 for n, _ in lanes[8]]


def test_channels_beside_channels_are_matched_although_both_are_permuted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither's rows are the same in both sources; taking them for that is the control."""
    network = NETWORKS["mixer"]
    model, inputs = network.make(0), network.inputs()
    symmetry = pf.permutation_groups(model, inputs)
    moved, order = symmetry.groups, symmetry.random(5)
    planted = symmetry.apply(model, order)

    def similarity() -> dict[int, float]:
        data = network.batch(16, 0)[0]
        found = pf.merge([model, planted], data, width=1.0, heads="shared", progress=False)
        partners = {g.group: g.lanes[0].channels[:, 1] for g in found.plan.groups}
        assert all((order.order[g.id][partners[g.id]] == range(g.size)).all() for g in moved)
        return {g.size: g.similarity for g in found.plan.groups}

    assert all(similarity()[g.size] > 1 - 1e-5 for g in moved)
    monkeypatch.setattr("passes.observe._aligned", lambda *_: True)
    assert similarity()[6] < 0.9  # six of them are still told apart; of 256, none were
