"""Rules, one by one: what they tie must be tied, what they leave apart may move by itself.

No check here reads the rules: permuted networks are run in float64, and compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import passes.groups
from passes.groups import groups
from passes.trace import trace
from pleas_fx import permutation_groups, rules
from pleas_fx.ir import Axis, GroupId
from pleas_fx.labels import Call, Coordinates, Labeller, Refused, Rule
from pleas_fx.rules import RULES, table
from tests.randomise import seeded
from tests.rule_cases import IMAGE, Case, between, conv, net, two
from tests.rule_cases_mixing import CASES, UNKNOWN
from tests.rule_checks import (
    DIFFERENT,
    EQUAL,
    Analysed,
    analysed,
    composite,
    example,
    families,
    frozen,
    loose_ties,
    names,
    needless,
    occurrences,
    operands,
    output,
    sizes,
    step,
)

every_case = pytest.mark.parametrize("case", [*CASES, *(u[0] for u in UNKNOWN)], ids=str)


# -- the groups -------------------------------------------------------------------------------


@every_case
def test_groups_are_as_expected(case: Case) -> None:
    """Sizes of the movable groups and the frozen axes, certified, with no group taken back."""
    symmetry = analysed(case).symmetry
    certificate = symmetry.certificate
    assert sizes(symmetry.groups) == case.groups.split()
    assert frozen(symmetry) == set(case.frozen.split())
    assert certificate.passed
    assert certificate.negative_control_caught
    assert certificate.max_error < EQUAL
    assert not certificate.culprits


@every_case
def test_coverage_counts_what_moves(case: Case) -> None:
    """The share of channel-axis entries in movable groups of more than one channel."""
    symmetry = analysed(case).symmetry
    assert (symmetry.certificate.coverage > 0) == any(g.size > 1 for g in symmetry.groups)
    assert symmetry.certificate.coverage < 1  # outputs never move


@every_case
def test_random_permutations_leave_the_function_unchanged(case: Case) -> None:
    """All groups at once, blocks included, certified here independently of the certifier."""
    given = analysed(case)
    for seed in range(3):
        assert given.change(given.symmetry.random(100 + seed).order) < EQUAL


@every_case
def test_each_group_moves_alone(case: Case) -> None:
    """No tie is missing: groups that are reported as separate don't need each other."""
    given = analysed(case)
    order = given.symmetry.random(7).order
    for family in families(given.symmetry):
        assert given.change({g.id: order[g.id] for g in family}) < EQUAL


@every_case
def test_every_axis_of_a_group_is_needed(case: Case) -> None:
    """No tie is needless: permuting any part of a group's axes alone changes the output."""
    given, unused = analysed(case), case.unused.split()
    for group in given.symmetry.groups:
        if sizes((group,))[0] in unused:
            assert len(loose_ties(given, group)) == 2 ** len(group.axes) - 2
        elif group.size > (group.blocks.count if group.blocks else 1):
            inert = {axis for axis in group.axes if f"{axis.key}.{axis.dim}" in case.inert.split()}
            assert [t for t in loose_ties(given, group) if len(t) == 1] == [{a} for a in inert]
            rest = replace(group, axes=tuple(axis for axis in group.axes if axis not in inert))
            assert not loose_ties(given, rest)


@every_case
def test_nothing_is_frozen_needlessly(case: Case) -> None:
    """Exchanging frozen channels changes the output, but for the limits a case names."""
    assert needless(analysed(case)) == case.needless


@every_case
def test_every_frozen_axis_alone_changes_the_output(case: Case) -> None:
    """Inputs, outputs and whatever else is frozen: permuting the axis is noticed."""
    given = analysed(case)
    ids = {axis: group for group in given.symmetry.fixed for axis in group.axes}
    assert ids.keys() >= {f.axis for f in given.symmetry.frozen}
    for axis, group in ids.items():
        if group.size > 1:
            assert given.change({group.id: np.roll(np.arange(group.size), 1)}, {axis}) > DIFFERENT


@every_case
def test_no_group_is_split_needlessly(case: Case) -> None:
    """Exchanging a channel with one of another group on the same axes changes the output."""
    given = analysed(case)
    layout = given.symmetry.layout
    for a, b in combinations([g for g in given.symmetry.groups if g.blocks is None], 2):
        if a.axes != b.axes or occurrences(given, a) != occurrences(given, b):
            continue
        joined = np.where(layout.group == b.id, a.id, layout.group)
        channel = np.where(layout.group == b.id, layout.channel + a.size, layout.channel)
        both = replace(given.symmetry, layout=replace(layout, group=joined, channel=channel))
        order = np.arange(a.size + b.size)
        order[[0, a.size]] = a.size, 0
        assert given._replace(symmetry=both).change({a.id: order}) > DIFFERENT


@pytest.mark.parametrize(("case", "node", "operator"), UNKNOWN, ids=str)
def test_unknown_operators_freeze_what_they_touch(case: Case, node: str, operator: str) -> None:
    """With the node and the operator in the reason; the rest of the network still moves."""
    symmetry = analysed(case).symmetry
    why = {f.axis: (f.node, f.reason) for f in symmetry.frozen}
    assert why[Axis("a.weight", 0)] == (node, f"no rule for the operator {operator}")
    assert [names(g) for g in symmetry.groups] == ["c.weight.0 c.bias.0 b.weight.1"]


def test_inputs_and_outputs_are_frozen_with_their_reason() -> None:
    """The first layer's inputs and the last layer's outputs belong to the outside."""
    case = next(c for c in CASES if c.name == "relu")
    why = {f"{f.axis.key}.{f.axis.dim}": (f.node, f.reason) for f in analysed(case).symmetry.frozen}
    assert why["b.weight.0"] == why["b.bias.0"] == ("output", "network output")
    assert why["a.weight.1"][0] == "a"


# -- the checks themselves ----------------------------------------------------------------------


def uncertified(build: Any, changed: Mapping[str, Rule], monkeypatch: Any) -> Analysed:
    """A network whose groups come from a table with some rules replaced, before certification."""
    monkeypatch.setattr(passes.groups, "RULES", {**RULES, **changed})
    model, x = seeded(build, 0).double(), example()
    return Analysed(model, x, output(model, x), groups(trace(model, (x,))))


def forgets_the_second(ctx: Labeller, call: Call) -> list[Coordinates]:
    """A wrong rule: a sum whose second operand may move by itself."""
    return [list(ctx.of(call.args[0]))]


def refuses(ctx: Labeller, call: Call) -> list[Coordinates]:
    """A wrong rule: freezes what it needn't."""
    raise Refused("for no reason")


def test_a_missing_tie_is_noticed(monkeypatch: Any) -> None:
    """Fed a rule that forgets an operand, every check of equality fails, and certifying too."""
    build = two(torch.add)
    given = uncertified(build, {"add": forgets_the_second}, monkeypatch)
    assert given.change(given.symmetry.random(0).order) > DIFFERENT
    alone = [{g.id: step(g)} for g in given.symmetry.groups]
    assert max(given.change(order) for order in alone) > DIFFERENT
    certificate = permutation_groups(given.model, given.x).certificate
    assert len(certificate.culprits) == 2
    assert certificate.max_error < EQUAL  # the culprits are frozen


def test_a_needless_tie_is_noticed(monkeypatch: Any) -> None:
    """Fed a rule that ties what is independent, parts of the group turn out to move alone."""

    def ties_to_a(ctx: Labeller, call: Call) -> list[Coordinates]:
        (labels,) = ctx.of(call.args[0])
        ctx.tie(ctx.axes[Axis("a.weight", 0)], labels[0, :, 0, 0])
        return [[labels]]

    build = net(
        lambda s, x: s.b(s.a(x)) + s.d(s.c(x).relu()),
        a=lambda: conv(2, 5),
        b=lambda: conv(5, 3),
        c=lambda: conv(2, 5),
        d=lambda: conv(5, 3),
    )
    right = uncertified(build, {}, monkeypatch)
    assert [loose_ties(right, g) for g in right.symmetry.groups] == [[], []]
    wrong = uncertified(build, {"relu": ties_to_a}, monkeypatch)
    (group,) = wrong.symmetry.groups
    assert {Axis("a.weight", 0), Axis("a.bias", 0), Axis("b.weight", 1)} in loose_ties(wrong, group)


def test_a_needless_freeze_is_noticed(monkeypatch: Any) -> None:
    """Fed a rule that refuses, the frozen group turns out to be exchangeable."""
    given = uncertified(between(lambda s, x: x.relu()), {"relu": refuses}, monkeypatch)
    assert not given.symmetry.groups
    assert needless(given) == "a.weight.0 a.bias.0 + b.weight.1"
    assert {f.reason for f in given.symmetry.frozen} >= {"relu: for no reason"}


# -- the table ----------------------------------------------------------------------------------


def test_an_operator_in_two_tables_is_an_error() -> None:
    """Families don't overlap, and which operators would is said."""
    once: dict[str, Rule] = {"relu": refuses, "add": refuses}
    assert set(table(once, {"cat": refuses})) == {"relu", "add", "cat"}
    with pytest.raises(ValueError, match=r"two rules: \['relu'\]"):
        table(once, {"relu": forgets_the_second})


def test_the_table_holds_every_family() -> None:
    """No family of rules is left out."""
    every = (
        rules.MOVEMENT,
        rules.POINTWISE,
        rules.CONTRACTION,
        rules.NORMALISATION,
        rules.REDUCTION,
    )
    assert len(RULES) == sum(map(len, every))


# Rules that no case can reach on this machine: other devices and torch versions, copies that a
# traced module doesn't make.
ELSEWHERE = set(
    """_reshape_alias squeeze_copy alias lift_fresh lift_fresh_copy cudnn_batch_norm
    miopen_batch_norm _batch_norm_no_update _batch_norm_with_update _native_batch_norm_legit
    _native_batch_norm_legit_no_training _adaptive_avg_pool1d avg_pool1d adaptive_avg_pool1d
    adaptive_avg_pool2d adaptive_avg_pool3d norm""".split()
)
UNTESTED = {"as_strided", "index_select", "repeat_interleave", "take", "new_ones", "new_full"} | {
    "fractional_max_pool2d",
    # by the awkward cases below, and in test_labels_writing
    "copy_",
    "zero_",
    "new_empty",
    "_safe_softmax",
}


class Recorder(dict[str, Rule]):
    """A table that notes which rules were used."""

    def __init__(self) -> None:
        super().__init__(RULES)
        self.used: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        """The rule of an operator."""
        if key in self:
            self.used.add(key)
        return super().get(key, default)


def test_every_rule_is_exercised(monkeypatch: Any) -> None:
    """Every rule but the pointwise ones is used by a case, or is listed here with a reason."""
    recorder = Recorder()
    monkeypatch.setattr(passes.groups, "RULES", recorder)
    for case in CASES:
        given = analysed(case)
        groups(trace(given.model, (given.x,)))
    missing = RULES.keys() - rules.POINTWISE.keys() - recorder.used
    assert {name for name in missing if not composite(name)} <= ELSEWHERE | UNTESTED
    assert not UNTESTED & recorder.used


# -- pointwise operators ------------------------------------------------------------------------


RANDOM = {"bernoulli", "native_dropout", "rrelu_with_noise"}  # equal in distribution only
COMPLEX = {"_conj"}


@pytest.mark.parametrize("name", sorted(set(rules.POINTWISE) - RANDOM - COMPLEX))
def test_pointwise_operators_are_pointwise(name: str) -> None:
    """Permuting the channels of all operands permutes the result; of one operand, it doesn't."""
    if composite(name) or not hasattr(torch.ops.aten, name):
        return  # no rule sees it
    operator, args, kwargs = operands(name)
    order = torch.tensor([3, 0, 4, 1, 2])

    def run(values: list[Any]) -> list[Tensor]:
        result = operator(*values, **kwargs)
        return [r for r in (result if isinstance(result, tuple) else (result,)) if r.numel()]

    def move(value: Any) -> Any:
        return value[:, order] if isinstance(value, Tensor) else value

    before, after = run(args), run([move(a) for a in args])
    assert before
    for a, b in zip(before, after, strict=True):
        assert torch.allclose(a[:, order].double(), b.double(), rtol=EQUAL, equal_nan=True)
    varies = any(not torch.equal(move(a), a) for a in before)
    one_moved = run([move(args[0]), *args[1:]])
    tensors = [a for a in args if isinstance(a, Tensor)]
    if varies and len(tensors) > 1:
        assert any(not torch.equal(move(a), b) for a, b in zip(before, one_moved, strict=True))


# -- awkward cases -----------------------------------------------------------------------------


def culprits(build: Any) -> tuple[GroupId, ...]:
    """Groups that the certificate had to take back."""
    return permutation_groups(seeded(build, 0).double(), example()).certificate.culprits


def test_a_channel_that_is_used_alone_is_told_apart() -> None:
    """x[:, 2:3] treats channel 2 differently."""
    assert not culprits(between(lambda s, x: x[:, 2:3], 7, 1))


def test_padded_windows_keep_their_channels() -> None:
    """F.unfold with padding ties its columns to the channels."""
    unfold = torch.nn.functional.unfold
    assert not culprits(
        between(lambda s, x: unfold(x, 3, padding=1).view(x.shape[0], 27, 5, 7), 3, 27)
    )


def test_channels_that_occur_in_another_order_are_told_apart() -> None:
    """p0 p1 q0 q1 q2 q3 p2 p3 with p + q: channels 0 and 2 have their parts the other way round."""
    order = [0, 1, 4, 5, 6, 7, 2, 3]
    build = net(
        lambda s, x: s.b(torch.cat([s.a(x), s.d(x)], 1)[:, order]) + s.c(s.a(x) + s.d(x)),
        a=lambda: conv(2, 4),
        b=lambda: conv(8, 3),
        c=lambda: conv(4, 3),
        d=lambda: conv(2, 4),
    )
    symmetry = permutation_groups(seeded(build, 0).double(), example())
    assert sizes(symmetry.groups) == ["2", "2"]
    assert not symmetry.certificate.culprits


def test_heads_that_may_not_move_keep_their_channels() -> None:
    """A value that differs a head without labels ties the heads, not what is inside them."""
    build = net(
        lambda s, x: s.b((s.a(x).view(-1, 3, 5, 5, 7) * s.t.cumsum(0)).flatten(1, 2)),
        a=lambda: conv(2, 15),
        b=lambda: conv(15, 3),
        t=lambda: torch.nn.Parameter(torch.randn(3, 1, 1, 1)),
    )
    symmetry = permutation_groups(seeded(build, 0).double(), example())
    assert sizes(symmetry.groups) == ["5"]
    assert not symmetry.certificate.culprits


def embedded(table: Any) -> Any:
    """Tokens of nine channels, a table of positions added, and a layer on each token."""
    return net(
        lambda s, x: s.b(s.a(x.flatten(2).mT) + s.p[: x.shape[2] * x.shape[3]]).mean(1),
        a=lambda: nn.Linear(2, 9),
        b=lambda: nn.Linear(9, 3),
        p=table,
    )


def test_positions_of_a_table_are_no_channels() -> None:
    """Tokens have no labels, so the rows of their table have none either; its columns move."""
    build = embedded(lambda: nn.Parameter(torch.randn(35, 9)))
    symmetry = permutation_groups(seeded(build, 0).double(), example())
    assert sizes(symmetry.groups) == ["9"]
    assert Axis("p", 1) in symmetry.groups[0].axes
    assert "p.0" not in {f"{f.axis.key}.{f.axis.dim}" for f in symmetry.frozen}
    assert Axis("p", 0) not in symmetry.layout.axes


def test_held_channels_of_a_layer_stay_channels() -> None:
    """The same reason on a layer's own axis freezes it, together with the table that meets it."""
    build = net(
        lambda s, x: s.b((s.a(x) + s.p) * x.mean((2, 3), keepdim=True).cumsum(1)),
        a=lambda: conv(2, 2),
        b=lambda: conv(2, 3),
        p=lambda: nn.Parameter(torch.randn(2, 1, 1)),
    )
    symmetry = permutation_groups(seeded(build, 0).double(), example())
    assert not symmetry.groups
    assert Axis("p", 0) in {f.axis for f in symmetry.frozen}


def test_a_sampling_grid_that_is_a_parameter_stays() -> None:
    """grid_sample mixes every axis of its grid."""
    build = between(
        lambda s, x: torch.nn.functional.grid_sample(x, s.g, align_corners=False),
        g=lambda: torch.rand(1, 3, 5, 2) - 0.5,
    )
    model = seeded(build, 0).double()
    assert not permutation_groups(model, example((1, 2, 5, 7))).certificate.culprits


def test_batched_products_with_an_unlabelled_operand_freeze_the_batch() -> None:
    """Fused attention ends in an operator without a rule; the heads of the values follow it."""

    def attend(s: Any, x: Tensor) -> Tensor:
        q = s.q(x.flatten(2).mT).unflatten(2, (3, 5)).transpose(1, 2)
        v = s.v(x.flatten(2).mT).unflatten(2, (3, 7)).transpose(1, 2)
        mixed = (q @ q.transpose(2, 3)).cumsum(-1) @ v
        return s.b(mixed.transpose(1, 2).flatten(2))

    build = net(
        attend, q=lambda: nn.Linear(2, 15), v=lambda: nn.Linear(2, 21), b=lambda: nn.Linear(21, 3)
    )
    assert not culprits(build)


def test_a_sum_over_channels_is_certified() -> None:
    """Weights and biases of summed channels may even move apart."""
    build = between(lambda s, x: x.sum(1, keepdim=True), 5, 1)
    assert permutation_groups(seeded(build, 0).double(), example()).certificate.passed


def test_constants_made_in_forward_do_not_keep_a_symmetry_from_the_model() -> None:
    """What permutation_groups returns applies to the model it was given."""
    fixed = torch.arange(5.0).view(5, 1, 1)
    model = seeded(between(lambda s, x: x * fixed.to(x)), 0).double()
    symmetry = permutation_groups(model, example())
    symmetry.apply(model, symmetry.random(0))


def test_a_literal_batch_size_is_accepted() -> None:
    """A model that only takes the batch it was shown is analysed on that batch."""
    model = seeded(between(lambda s, x: x.view(2, 5, 35).view(2, 5, 5, 7)), 0)
    assert sizes(permutation_groups(model, torch.randn(IMAGE)).groups) == ["5"]


def test_circular_padding_keeps_channels() -> None:
    """Like zero and reflection padding do."""
    build = net(
        lambda s, x: s.b(s.a(x)),
        a=lambda: conv(2, 5),
        b=lambda: conv(5, 3, 3, padding=1, padding_mode="circular"),
    )
    assert sizes(permutation_groups(seeded(build, 0).double(), example()).groups) == ["5"]


def test_case_names_are_unique() -> None:
    """Every case has a test id of its own."""
    labels = [case.name for case in CASES]
    assert len(set(labels)) == len(labels)
