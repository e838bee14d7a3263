"""Fitting: one walk over the graph, bounded memory, and weights that no others beat (oracle 5)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

import pleas_fx as pf
from passes import _contractions, _lockstep
from passes._contractions import Regression
from passes._rows import Rows, Settings
from passes._targets import Sampling, Targets
from passes.fit import Fitted, fit
from passes.rewrite import Rewritten
from pleas_fx.budget import Budget
from pleas_fx.calibration import Batches, collect
from pleas_fx.extract import Runner
from pleas_fx.planning import decide, look
from pleas_fx.prepare import Prepared, prepare
from pleas_fx.request import Clock, Options
from tests.merging import doubled, outputs, precise
from tests.networks import NETWORKS

NAME = "narrow_resnet"
NO_RIDGE = 1e-13


@cache
def data(name: str = NAME) -> Batches:
    """Calibration data, in several batches."""
    (images,) = doubled(NETWORKS[name].batch(60, seed=4))
    return collect(images, batch_size=20)


@cache
def sources(name: str = NAME, kinship: float = 0.0) -> tuple[nn.Module, ...]:
    """Two networks: independent ones, or a second one that has much of the first."""
    first, second = precise(NETWORKS[name], 0, 1)
    with torch.no_grad():
        for own, other in zip(second.parameters(), first.parameters(), strict=True):
            own.lerp_(other, kinship)
    return first, second


def rewritten(width: float, name: str = NAME, kinship: float = 0.0) -> tuple[Prepared, Rewritten]:
    """A planned network with block averages for weights."""
    inputs = doubled(NETWORKS[name].inputs())
    options, clock = Options(Budget(width=width)), Clock()
    prepared = prepare(sources(name, kinship), inputs, options, clock)
    observed = look(prepared, data(name), options, clock)
    return prepared, decide(prepared, observed, inputs, options, clock)[1]


def fitted(
    width: float, ridge: float = 1e-4, name: str = NAME, kinship: float = 0.0, **options: Any
) -> tuple[Rewritten, Fitted]:
    """The same, fitted on every row there is."""
    prepared, network = rewritten(width, name, kinship)
    settings = Settings(ridge, 10**6, 0, data(name).owners, frozenset())
    return network, fit(prepared.programs, network, data(name).batches, settings, **options)


def read_by(network: fx.GraphModule, layer: str) -> Tensor:
    """What a layer reads, over all batches."""
    node = next(n for n in network.graph.nodes if n.target == layer)
    rows: list[Tensor] = []
    keep = network.get_submodule(layer).register_forward_pre_hook(
        lambda _, args: rows.append(args[0])
    )
    with torch.no_grad():
        for batch in data().batches:
            network(*batch)
    keep.remove()
    assert node.op == "call_module"
    return torch.cat(rows)


def answers(source: int) -> Tensor:
    """A source's outputs, over all batches."""
    return torch.cat([outputs(sources()[source], batch)[0] for batch in data().batches])


def heads(network: Rewritten) -> list[tuple[int, str]]:
    """The last layer of every source."""
    return [(int(s.membership).bit_length() - 1, s.module) for s in network.sites if s.node == "fc"]


def test_a_fitted_head_is_the_least_squares_solution_of_numpy() -> None:
    """On the merged network's own activations, towards the source's outputs."""
    network, _ = fitted(1.0, NO_RIDGE)
    assert len(heads(network)) == 2
    for source, layer in heads(network):
        z = read_by(network.module, layer)
        ones = torch.cat([z, torch.ones(len(z), 1, dtype=z.dtype)], 1)
        expected = np.linalg.lstsq(ones.numpy(), answers(source).numpy(), rcond=None)[0].T
        found = network.module.get_submodule(layer)
        assert isinstance(found, nn.Linear)
        both = torch.cat([found.weight, found.bias[:, None]], 1).detach().numpy()
        assert np.abs(both - expected).max() < 1e-6 * np.abs(expected).max()


def test_no_other_weights_of_a_head_leave_less() -> None:
    """Neither the block average nor weights nearby; the average leaves more, as a control."""
    network, _ = fitted(1.0, NO_RIDGE)
    _, unfitted = rewritten(1.0)
    generator = torch.Generator().manual_seed(0)
    for source, layer in heads(network):
        z, target = read_by(network.module, layer), answers(source)
        best, average = (n.module.get_submodule(layer) for n in (network, unfitted))
        least = _left(best, z, target)
        assert _left(average, z, target) > 1.1 * least
        for _ in range(10):
            assert _left(_nudged(best, generator), z, target) > least


def _left(layer: nn.Module, z: Tensor, target: Tensor) -> float:
    with torch.no_grad():
        return float((layer(z) - target).square().sum())


def _nudged(layer: nn.Module, generator: torch.Generator) -> nn.Module:
    assert isinstance(layer, nn.Linear)
    other = nn.Linear(layer.in_features, layer.out_features, dtype=torch.float64)
    noise = torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        other.weight.copy_(layer.weight + 1e-3 * noise)
        other.bias.copy_(layer.bias)
    return other


def test_fitting_brings_every_output_closer_to_its_source() -> None:
    """Half merged or thinned networks answer better than their block averages do."""
    network, _ = fitted(1.25)
    _, unfitted = rewritten(1.25)
    for source in range(2):
        errors = [_distance(n.module, source) for n in (network, unfitted)]
        assert errors[0] < 0.6 * errors[1]


def _distance(network: fx.GraphModule, source: int) -> float:
    found = torch.cat([outputs(network, batch)[source] for batch in data().batches])
    return float((found - answers(source)).norm() / answers(source).norm())


def test_every_node_runs_once_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """One walk: the merged network doesn't start again for a layer."""
    seen: Counter[tuple[str, str, int]] = Counter()
    evaluate = _lockstep.Network._evaluate

    def counted(self: _lockstep.Network, node: fx.Node, batch: int) -> Any:
        seen[self.label, node.name, batch] += 1
        return evaluate(self, node, batch)

    monkeypatch.setattr(_lockstep.Network, "_evaluate", counted)
    network, _ = fitted(1.25)
    assert set(seen.values()) == {1}
    unread = {
        layer.replace(".", "_").lower() for _, layer in heads(network)
    }  # nothing is fitted behind
    nodes = {n.name for n in network.module.graph.nodes if n.op != "output"} - unread
    merged = {key[1:] for key in seen if key[0] == "merged"}
    assert merged == {(n, k) for n in nodes for k in range(len(data().batches))}


def test_a_merge_runs_its_sources_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics and targets come from the same run, whatever is planned in between."""
    runs: list[Runner] = []
    run = Runner.run

    def counted(self: Runner, *args: Any) -> Any:
        runs.append(self)
        return run(self, *args)

    monkeypatch.setattr(Runner, "run", counted)
    pf.merge(sources(), data().batches, width=1.25, progress=False)
    assert len(runs) == 2 * len(data().batches)


def test_what_was_sampled_before_gives_the_same_network() -> None:
    """Seen on the way, or sampled when fitting starts: the same rows, to the bit."""
    own, _ = fitted(1.25)
    prepared, network = rewritten(1.25)
    settings = Settings(1e-4, 10**6, 0, data().owners, frozenset())
    store = _lockstep.Store()
    targets = Targets(prepared.programs[0], settings.sampling(1.25), store)
    look(prepared, data(), Options(Budget(width=1.25)), Clock(), targets)
    fit(prepared.programs, network, data().batches, settings, targets=targets)
    for key, value in own.module.state_dict().items():
        assert torch.equal(value, network.module.state_dict()[key])


def test_samples_are_the_beginning_of_a_larger_sample() -> None:
    """Fewer rows are some of the more; each is a source's value at its position."""
    prepared, _ = rewritten(1.25)
    sampling = Sampling(1, 0, data().owners, frozenset(), 2.0)
    targets = Targets(prepared.programs[0], sampling, _lockstep.Store())
    look(prepared, data(), Options(Budget(width=1.25)), Clock(), targets)
    node, values = "stages_1_norm1", {}
    program = prepared.programs[1].module
    Runner(program, lambda n, value: values.update({n.name: value})).run(*data().batches[2])
    rows = values[node].movedim(1, -1).flatten(0, 2)
    few, more = (targets.at(node, 2, n) for n in (50, 200))
    assert set(few) < set(more)
    for count, at in ((50, few), (200, more)):
        assert len(at) == count
        assert targets.rows(1, node, 2, count).equal(rows[at])


def test_heads_may_need_all_their_rows_from_one_owners_batches() -> None:
    """The sample of a batch is as large as the owner with the fewest batches needs."""
    owners, unknowns = (0, 1, 1, 1), 10_000
    known = Sampling(8, 0, owners, frozenset({"fc"}), 1.5)
    unknown = Sampling(8, 0, (None,) * 4, frozenset({"fc"}), 1.5)
    assert known.quota("fc", unknowns) == 8 * 1.5 * unknowns
    assert known.quota("conv1", unknowns) == 8 * 1.5 * unknowns / 4
    assert unknown.quota("fc", unknowns) == 8 * 1.5 * unknowns / 4


def test_activations_beyond_the_memory_bound_change_nothing() -> None:
    """They go to disk and come back; the bound is kept."""
    free, held = fitted(1.25)
    tight, spilt = fitted(1.25, memory=held.peak_bytes // 4)
    assert held.peak_bytes // 4 >= spilt.peak_bytes > 0
    for key, value in free.module.state_dict().items():
        assert torch.equal(value, tight.module.state_dict()[key])


def test_only_live_activations_are_held() -> None:
    """The most held at once is far less than all activations of all layers."""
    network, held = fitted(1.25)
    everything = _all_bytes([*sources(), network.module])
    assert held.peak_bytes < 0.5 * everything


def _all_bytes(networks: Sequence[nn.Module]) -> int:
    total = 0
    for network in networks:
        graph = network if isinstance(network, fx.GraphModule) else fx.symbolic_trace(network)
        for batch in data().batches:
            for value in _Values(graph).all(*batch):
                total += value.numel() * value.element_size()
    return total


class _Values(fx.Interpreter):
    """Every value of a graph."""

    def all(self, *inputs: Tensor) -> list[Tensor]:
        self.found: list[Tensor] = []
        with torch.no_grad():
            self.run(*inputs)
        return self.found

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.found.append(value)
        return value


@pytest.mark.parametrize("name", ["resnet", "densenet", "vgg", "unet", "shufflenet_v2"])
def test_lanes_fitted_together_are_what_each_would_be_alone(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows and sums shared by the lanes of a layer change no weight, beyond rounding."""
    shared: list[int] = []
    worthwhile = _contractions._worthwhile

    def counted(rows: Rows, found: list[Regression]) -> list[list[Regression]]:
        parts = worthwhile(rows, found)
        shared.extend(len(part) for part in parts if len(part) > 1)
        return parts

    monkeypatch.setattr(_contractions, "_worthwhile", counted)
    together, _ = fitted(1.5, name=name, kinship=0.7)
    monkeypatch.setattr(_contractions, "_worthwhile", lambda _, found: [[r] for r in found])
    alone, _ = fitted(1.5, name=name, kinship=0.7)
    assert shared
    expected = alone.module.state_dict()
    for key, value in together.module.state_dict().items():
        scale = float(expected[key].double().norm())
        assert float((value - expected[key]).double().norm()) <= 1e-8 * scale, key
