"""The networks other tests rely on are what they claim to be."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.utils._pytree import tree_leaves

from tests import random_networks, random_pieces
from tests.networks import BATCHNORM_CNNS, NETWORKS, ORDERED, Inputs, Network, noise, thinned
from tests.random_networks import RandomNetwork, networks

every_network = pytest.mark.parametrize("network", NETWORKS.values(), ids=str)


def outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """All output tensors of a network, in order."""
    with torch.no_grad():
        return tree_leaves(model(*inputs))


def rms(x: Tensor) -> float:
    """Root mean square."""
    return x.square().mean().sqrt().item()


def distances(a: list[Tensor], b: list[Tensor]) -> list[float]:
    """How far each output lies from its counterpart, relative to its size."""
    return [rms(x - y) / rms(x) for x, y in zip(a, b, strict=True)]


@every_network
def test_is_in_eval_mode(network: Network) -> None:
    """No module is left in train mode, so running twice changes nothing."""
    model = network.make(0)
    assert not any(module.training for module in model.modules())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    outputs(model, network.inputs())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@every_network
def test_outputs_are_finite_and_of_order_one(network: Network) -> None:
    """No output explodes or vanishes, so relative errors mean something."""
    for seed in range(3):
        for value in outputs(network.make(seed), network.inputs()):
            assert value.isfinite().all()
            assert 0.02 < rms(value) < 50.0


@every_network
def test_outputs_depend_on_the_input(network: Network) -> None:
    """Every output differs between two inputs: a constant network would pass any oracle."""
    model = network.make(0)
    apart = distances(outputs(model, network.batch(2, 1)), outputs(model, network.batch(2, 2)))
    assert min(apart) > 0.01


@every_network
def test_seeds_give_independent_networks_and_repeat(network: Network) -> None:
    """One seed always gives the same weights, another seed other ones."""
    inputs = network.inputs()
    first, again, other = (outputs(network.make(seed), inputs) for seed in (0, 0, 1))
    assert max(distances(first, again)) == 0.0
    assert min(distances(first, other)) > 0.05


@every_network
def test_traces_to_one_graph_for_all_seeds(network: Network) -> None:
    """torch.fx traces the network, to the same function and for every seed to the same graph."""
    model = network.make(0)
    traced = fx.symbolic_trace(model)
    assert str(traced.graph) == str(fx.symbolic_trace(network.make(1)).graph)
    inputs = network.inputs()
    assert max(distances(outputs(model, inputs), outputs(traced, inputs))) == 0.0


@every_network
def test_no_channel_looks_like_another(network: Network) -> None:
    """No two indices of any axis hold the same values: exchanging them would go unnoticed."""
    for name, value in network.make(0).state_dict().items():
        for axis in range(value.dim() if value.is_floating_point() else 0):  # no index tables
            assert value.unique(dim=axis).shape == value.shape, (name, axis)


def test_making_a_network_leaves_the_global_generator_alone() -> None:
    """Tests stay independent of the order in which networks are made."""
    torch.manual_seed(3)
    expected = torch.rand(())
    torch.manual_seed(3)
    NETWORKS["narrow_resnet"].make(0)
    assert torch.equal(torch.rand(()), expected)


@every_network
def test_running_variances_are_positive(network: Network) -> None:
    """Running variances lie where the square root and its inverse are harmless."""
    for module in network.make(0).modules():
        if isinstance(module, _NormBase) and module.running_var is not None:
            assert ((module.running_var >= 0.5) & (module.running_var <= 1.5)).all()


def test_batchnorm_networks_have_no_other_norm() -> None:
    """The set of BatchNorm networks is exactly what the modules say."""
    norms = (_NormBase, nn.GroupNorm, nn.LayerNorm)
    found = set()
    for name, network in NETWORKS.items():
        used = [m for m in network.make(0).modules() if isinstance(m, norms)]
        if used and all(isinstance(m, _BatchNorm) for m in used):
            found.add(name)
    assert found - ORDERED == BATCHNORM_CNNS


def exchanged(network: Network, producer: str, consumer: str) -> float:
    """The change of the outputs when two channels between two convolutions change places."""
    model, inputs = network.make(0).double(), tuple(x.double() for x in network.inputs())
    before = outputs(model, inputs)
    state = model.state_dict()  # shares memory with the model
    for value in (state[f"{producer}.weight"], state[f"{producer}.bias"]):
        value[[0, 1]] = value[[1, 0]]
    weight = state[f"{consumer}.weight"]
    weight[:, [0, 1]] = weight[:, [1, 0]]
    return max(distances(before, outputs(model, inputs)))


@pytest.mark.parametrize("name", sorted(ORDERED))
def test_ordered_networks_notice_exchanged_channels(name: str) -> None:
    """Exchanging channels around an operator that depends on their order changes the outputs."""
    assert exchanged(NETWORKS[name], "conv2", "conv3") > 1e-3


def test_exchanged_channels_cancel_where_order_is_free() -> None:
    """The counterpart: without such an operator the same exchange changes nothing."""
    assert exchanged(NETWORKS["no_norm"], "0", "3") < 1e-12


def test_batch_draws_the_size_and_kind_asked_for() -> None:
    """Other inputs keep every dimension but the first, and differ from seed to seed."""
    image, vector = NETWORKS["two_inputs"].batch(7, seed=1)
    assert image.shape == (7, 3, 8, 8)
    assert vector.shape == (7, 4)
    assert not torch.equal(image, NETWORKS["two_inputs"].batch(7, seed=2)[0])


def test_thinning_keeps_counts_that_do_not_divide() -> None:
    """Image channels and classes stay, hidden widths and depthwise groups shrink."""
    conv = nn.Conv2d(16, 16, 3, padding=1, groups=16)
    build = lambda: nn.Sequential(nn.Conv2d(3, 16, 1), conv, nn.Conv2d(16, 5, 1))  # noqa: E731
    model = thinned(build, 4)
    assert [tuple(p.shape) for p in model.parameters() if p.dim() == 4] == [
        (4, 3, 1, 1),
        (4, 1, 3, 3),
        (5, 4, 1, 1),
    ]
    assert model(*noise((2, 3, 6, 6))).shape == (2, 5, 6, 6)


@given(networks())
@settings(max_examples=40)
def test_random_networks_run_trace_and_react(network: RandomNetwork) -> None:
    """Generated networks compute something finite that depends on the input, traced or not."""
    model = network.make(0)
    traced = fx.symbolic_trace(model)
    here, there = network.batch(2, 1), network.batch(2, 2)
    value = outputs(model, here)
    assert value[0].isfinite().all()
    assert 0.02 < rms(value[0]) < 50.0
    assert distances(value, outputs(traced, here)) == [0.0]
    assert distances(value, outputs(model, there))[0] > 1e-3


@given(networks())
@settings(max_examples=40)
def test_random_networks_print_as_the_call_that_makes_them(network: RandomNetwork) -> None:
    """A failing example can be pasted from the report into a test."""
    names = {**vars(random_pieces), **vars(random_networks)}
    assert eval(repr(network), names) == network


@given(networks())
@settings(max_examples=40)
def test_random_networks_stay_small(network: RandomNetwork) -> None:
    """Widths stay between 3 and 12 channels at every step, so that oracles stay fast."""
    channels = random_networks.IMAGE
    for step in network.steps:
        channels = step.out(channels)
        assert random_networks.LEAST <= channels <= random_networks.MOST


def test_random_networks_reach_every_piece() -> None:
    """The strategy uses every kind of step and head: none is dead through an impossible draw."""
    seen: set[str] = set()

    @given(networks())
    @settings(max_examples=150, database=None)
    def collect(network: RandomNetwork) -> None:
        seen.add(network.head)
        seen.update(name for name in pieces if f"{name}(" in repr(network))

    pieces = """Conv Depthwise Normalise Shuffle Gate SqueezeExcite Pool PixelShuffle Transposed
        Residual Concat UShape""".split()
    collect()
    assert seen == {*pieces, "mean", "flatten", "dense"}
