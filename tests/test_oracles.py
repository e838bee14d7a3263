"""Truths that hold for every architecture and need no data set (oracles 1 to 4 and 7)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings

import pleas_fx as pf
from tests.merging import (
    NAMES,
    calibration,
    clone,
    doubled,
    merge,
    outputs,
    precise,
    worst,
)
from tests.networks import BATCHNORM_CNNS, NETWORKS
from tests.random_networks import RandomNetwork, networks

EXACT = 1e-9  # relative, float64: rounding through a few dozen layers stays below 1e-13
SINGLE = 1e-4  # relative, float32
WITHOUT_FREEDOM = {"channel_shuffle", "grouped"}  # clashing blocks freeze every channel


@pytest.mark.parametrize("name", NAMES)
def test_random_permutations_of_all_groups_leave_the_function_unchanged(name: str) -> None:
    """Oracle 1, with a permutation that isn't in the symmetry as control."""
    network = NETWORKS[name]
    symmetry = pf.permutation_groups(network.make(0), network.inputs())
    certificate = symmetry.certificate
    assert certificate.max_error < EXACT
    assert certificate.passed
    assert certificate.negative_control_caught
    assert not certificate.culprits
    assert symmetry.groups or name in WITHOUT_FREEDOM


@pytest.mark.parametrize("name", NAMES)
def test_a_permuted_copy_is_recovered_and_merges_into_the_original(name: str) -> None:
    """Oracle 2: every slot is merged at width 1, and the function is the original's."""
    network = NETWORKS[name]
    (model,), inputs = precise(network, 0), doubled(network.inputs())
    symmetry = pf.permutation_groups(model, inputs)
    planted = symmetry.apply(model, symmetry.random(3))
    result = merge(name, [model, planted], width=1.0, heads="shared")
    assert all(len(g.lanes) == 1 for g in result.plan.groups)
    assert all(g.width == 1.0 for g in result.plan.groups)
    assert worst(outputs(result.model, inputs), outputs(model, inputs)) < EXACT


@pytest.mark.parametrize("name", NAMES)
def test_nothing_merged_is_the_exact_ensemble_at_twice_the_cost(name: str) -> None:
    """Oracle 3 with separate heads: the sources' outputs, for at most 2.02 times the FLOPs."""
    network = NETWORKS[name]
    (a, b), inputs = precise(network, 0, 1), doubled(network.inputs())
    result = merge(name, [a, b], width=2.0)
    assert worst(outputs(result.model, inputs), outputs(a, inputs) + outputs(b, inputs)) < EXACT
    assert result.report.merged.flops <= 2.02 * result.report.sources[0].flops


@pytest.mark.parametrize("name", sorted(BATCHNORM_CNNS))
def test_the_exact_ensemble_holds_in_single_precision(name: str) -> None:
    """Oracle 3 in the precision that networks are used in."""
    network = NETWORKS[name]
    a, b, inputs = network.make(0), network.make(1), network.inputs()
    result = merge(name, [a, b], width=2.0)
    assert worst(outputs(result.model, inputs), outputs(a, inputs) + outputs(b, inputs)) < SINGLE


@pytest.mark.parametrize("name", ["resnet", "densenet", "convnext", "unet", "no_norm"])
def test_a_shared_head_over_nothing_merged_is_the_mean(name: str) -> None:
    """Oracle 3 with a shared head."""
    network = NETWORKS[name]
    (a, b), inputs = precise(network, 0, 1), doubled(network.inputs())
    result = merge(name, [a, b], width=2.0, heads="shared")
    pairs = zip(outputs(a, inputs), outputs(b, inputs), strict=True)
    assert worst(outputs(result.model, inputs), [(x + y) / 2 for x, y in pairs]) < EXACT


@pytest.mark.parametrize("name", NAMES)
def test_a_network_merged_with_itself_keeps_its_function(name: str) -> None:
    """Oracle 4; the control is a merge with another network, which doesn't."""
    network = NETWORKS[name]
    (model,), inputs = precise(network, 0), doubled(network.inputs())
    result = merge(name, [model, model], width=1.0, heads="shared")
    assert worst(outputs(result.model, inputs), outputs(model, inputs)) < EXACT
    other = merge(name, [model, *precise(network, 1)], width=1.0, heads="shared")
    assert worst(outputs(other.model, inputs), outputs(model, inputs)) > 1e-3


@pytest.mark.parametrize("resource", ["flops", "params"])
@pytest.mark.parametrize("budget", [0.5, 1.25])
@pytest.mark.parametrize(
    "name", ["narrow_resnet", "densenet", "mobilenet_v2", "unet", "resnext", "separable"]
)
def test_the_emitted_network_is_within_its_budget(name: str, budget: float, resource: str) -> None:
    """Oracle 7, counted on the emitted graph; and the budget is used."""
    network = NETWORKS[name]
    a, b, inputs = network.make(0), network.make(1), network.inputs()
    result = merge(name, [a, b], **{resource: budget})
    have = getattr(pf.count(result.model, inputs), resource)
    base = getattr(pf.count(a, inputs), resource)
    assert 0.85 * budget * base < have <= budget * base * 1.000001


@pytest.mark.parametrize("name", ["narrow_resnet", "gated"])
def test_three_sources_apart_are_all_there(name: str) -> None:
    """Oracle 3 for three sources."""
    network = NETWORKS[name]
    models, inputs = precise(network, 0, 1, 2), doubled(network.inputs())
    result = merge(name, models, width=3.0)
    expected = [t for model in models for t in outputs(model, inputs)]
    assert worst(outputs(result.model, inputs), expected) < EXACT


def test_three_permuted_copies_are_matched_consistently() -> None:
    """Oracle 2 for three sources."""
    network = NETWORKS["narrow_resnet"]
    (model,), inputs = precise(network, 0), doubled(network.inputs())
    symmetry = pf.permutation_groups(model, inputs)
    copies = [symmetry.apply(model, symmetry.random(seed)) for seed in (1, 2)]
    result = merge("narrow_resnet", [model, *copies], width=1.0, heads="shared")
    assert all(len(g.lanes) == 1 for g in result.plan.groups)
    assert worst(outputs(result.model, inputs), outputs(model, inputs)) < EXACT


@pytest.mark.parametrize("name", ["resnext", "group_norm_resnet", "regnet"])
def test_planted_block_permutations_are_recovered(name: str) -> None:
    """Whole blocks move: a block group isn't matched in place."""
    network = NETWORKS[name]
    (model,), inputs = precise(network, 0), doubled(network.inputs())
    symmetry = pf.permutation_groups(model, inputs)
    assert any(group.blocks is not None for group in symmetry.groups)
    planted_order = symmetry.random(7)
    planted = symmetry.apply(model, planted_order)
    result = merge(name, [model, planted], width=1.0, heads="shared")
    blocks = {g.id for g in symmetry.groups if g.blocks is not None}
    for group in result.plan.groups:
        if group.group in blocks:
            partner = group.lanes[0].channels[:, 1]
            assert np.array_equal(planted_order.order[group.group][partner], np.arange(group.size))


def test_weight_matching_recovers_a_permuted_copy_without_data() -> None:
    """Oracle 2, data-free."""
    network = NETWORKS["narrow_resnet"]
    (model,), inputs = precise(network, 0), doubled(network.inputs())
    symmetry = pf.permutation_groups(model, inputs)
    planted = symmetry.apply(model, symmetry.random(3))
    result = pf.merge(
        [model, planted], None, width=1.0, heads="shared", example_inputs=inputs, progress=False
    )
    assert worst(outputs(result.model, inputs), outputs(model, inputs)) < EXACT


@pytest.mark.parametrize("name", ["narrow_resnet", "shared", "instance_norm_statistics"])
def test_sources_are_never_changed(name: str) -> None:
    """Weights, buffers, modes and hooks stay as they were."""
    network = NETWORKS[name]
    a, b = network.make(0).train(), network.make(1)
    before = clone(a), clone(b)
    merge(name, [a, b], flops=1.0)
    for model, held in zip((a, b), before, strict=True):
        assert all(torch.equal(held[k], v) for k, v in model.state_dict().items())
        assert not any(m._forward_hooks for m in model.modules())
    assert a.training
    assert not b.training


def test_the_same_seed_gives_the_same_bits() -> None:
    """Two runs agree exactly; another seed draws other rows."""
    network = NETWORKS["resnet"]
    models = [network.make(0), network.make(1)]
    first, second = (merge("resnet", models, flops=1.0, seed=3) for _ in range(2))
    for key, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[key])


@settings(max_examples=12, deadline=None)
@given(networks())
def test_random_networks_keep_their_oracles(network: RandomNetwork) -> None:
    """Certificate, planted permutation and exact ensemble on generated graphs."""
    (a, b), inputs = precise(network, 0, 1), doubled(network.inputs())
    symmetry = pf.permutation_groups(a, inputs)
    assert symmetry.certificate.max_error < EXACT
    assert not symmetry.certificate.culprits
    batches = [doubled(network.batch(12, seed=2))]
    planted = symmetry.apply(a, symmetry.random(1))
    same = pf.merge([a, planted], batches, width=1.0, heads="shared", progress=False)
    assert worst(outputs(same.model, inputs), outputs(a, inputs)) < EXACT
    both = pf.merge([a, b], batches, width=2.0, progress=False)
    assert worst(outputs(both.model, inputs), outputs(a, inputs) + outputs(b, inputs)) < EXACT


def test_calibration_helper_gives_batches_of_the_right_kind() -> None:
    """The tests above really see data."""
    batches = calibration("two_inputs")
    assert len(batches) == 2
    assert len(batches[0]) == len(NETWORKS["two_inputs"].inputs())
