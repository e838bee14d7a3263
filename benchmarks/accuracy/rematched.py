"""Matching again after fitting: every source against the network that they were merged into.

python -m benchmarks.accuracy.rematched [--folder F] [--seeds N] [--rounds N]

Everything is merged at width 1 and fitted. That network has the sources' graph, so each source is
matched with it; channels of two sources that match the same one of its are paired, and all is
merged and fitted again. Only where outputs are shared: else the merged network is another graph.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from statistics import fmean

import numpy as np
import torch
from torch import nn

from benchmarks.accuracy import asked as common
from benchmarks.accuracy.ablations import VARIATIONS
from benchmarks.accuracy.evaluate import Tests
from benchmarks.accuracy.measure import Setting
from benchmarks.accuracy.scenarios import SCENARIOS
from benchmarks.accuracy.sources import calibration, given, sources
from benchmarks.accuracy.tasks import Store
from pleas_fx import planning
from pleas_fx.budget import Budget
from pleas_fx.calibration import Batches, collect
from pleas_fx.compiler import compile_models
from pleas_fx.ir import IntArray, Matching
from pleas_fx.planning import look
from pleas_fx.prepare import Prepared, prepare
from pleas_fx.request import Clock, Options

SHARED = ("same-task", "domains", "four-domains")
ARCHITECTURES = ("resnet-narrow", "resnet-wide", "vgg")
OPTIONS = Options(Budget(width=1.0), "shared", None, contest=False)
Inputs = tuple[torch.Tensor, ...]


def merged(
    models: Sequence[nn.Module], inputs: Inputs, data: Batches, matching: Matching
) -> nn.Module:
    """All channels in pairs by a matching, fitted: as a source's module."""
    ordinary = planning._matching
    planning._matching = lambda *_: matching
    try:
        with VARIATIONS["merged-only"].applied():
            compiled = compile_models(models, inputs, data, OPTIONS, Clock())
    finally:
        planning._matching = ordinary
    network = copy.deepcopy(models[0])
    state = compiled.rewritten.module.state_dict()
    network.load_state_dict({k: v for k, v in state.items() if k in network.state_dict()})
    return network


def rematched(models: Sequence[nn.Module], network: nn.Module, data: Batches) -> Matching:
    """Channels that match the same one of ``network``."""
    inputs = tuple(t[:2] for t in data.batches[0])
    found = [
        _matching(prepare([network, model], inputs, OPTIONS, Clock()), data) for model in models
    ]
    partner = {g: _composed([own.partner[g] for own in found]) for g in found[0].partner}
    return Matching(partner, found[0].similarity)


def _matching(prepared: Prepared, data: Batches) -> Matching:
    return look(prepared, data, OPTIONS, Clock()).matching


def _composed(partners: Sequence[IntArray]) -> IntArray:
    """From (2, channels) of the network and each source to (sources, channels of the first)."""
    back = np.argsort(partners[0][1])  # the network's channel of each of the first source's
    return np.stack([own[1][back] for own in partners])


def changed(before: Matching, after: Matching) -> float:
    """The share of channels that have another partner."""
    pairs = [(before.partner[g][1:], own[1:]) for g, own in after.partner.items()]
    return sum(int((a != b).sum()) for a, b in pairs) / sum(a.size for a, _ in pairs)


def trial(setting: Setting, rounds: int, store: Store) -> list[tuple[float, float]]:
    """Accuracies and shares of other partners: matched once, then again ``rounds`` times."""
    scenario = SCENARIOS[setting.scenario]
    models = sources(scenario, setting.architecture, setting.seed, store)
    tests = Tests(scenario, store)
    data = collect(given(scenario, calibration(scenario, setting.seed, store)))
    inputs = (tests.inputs[0][:2],)
    matching = _matching(prepare(models, inputs, OPTIONS, Clock()), data)
    network = merged(models, inputs, data, matching)
    found = [(fmean(tests.merged(network)), 0.0)]
    for _ in range(rounds):
        before, matching = matching, rematched(models, network, data)
        network = merged(models, inputs, data, matching)
        found.append((fmean(tests.merged(network)), changed(before, matching)))
    return found


def main() -> None:
    """Print a row a setting."""
    parser = common.parser(__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    store = common.store(asked)
    for seed in range(asked.seeds):
        for architecture in ARCHITECTURES:
            for name in SHARED:
                found = trial(Setting(name, architecture, seed), asked.rounds, store)
                figures = [f"{100 * own:.1f} ({100 * other:.0f} %)" for own, other in found]
                print(f"{name}/{architecture}/{seed}", *figures, flush=True)


if __name__ == "__main__":
    main()
