"""One figure, or the figures that need no merge: from trained sources to a record."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

import pleas_fx as pf
from benchmarks.accuracy.evaluate import ENSEMBLES, Tests
from benchmarks.accuracy.methods import METHODS
from benchmarks.accuracy.records import REFERENCE_CASE, Record, Records
from benchmarks.accuracy.rivals.aligned import Request
from benchmarks.accuracy.scenarios import SCENARIOS
from benchmarks.accuracy.sources import calibration, ceiling, fingerprint, given, sources
from benchmarks.accuracy.tasks import Store
from pleas_fx.errors import PleasError


@dataclass(frozen=True, slots=True)
class Setting:
    """Where a method is tried."""

    scenario: str
    architecture: str
    seed: int


@dataclass(frozen=True, slots=True)
class Case:
    """What is measured at once; "references" stands for everything that is no merge."""

    setting: Setting
    method: str
    budget: float

    @property
    def key(self) -> tuple[str, str, int, str, float]:
        """What tells it from others in the file of records."""
        s = self.setting
        return s.scenario, s.architecture, s.seed, self.method, self.budget


def settle(wanted: Sequence[Case], records: Records, store: Store) -> None:
    """Forget what was measured of other sources, where something is missing: it lacks, too."""
    for setting in dict.fromkeys(case.setting for case in wanted if case not in records):
        name, architecture, seed = setting.scenario, setting.architecture, setting.seed
        if records.sources(name, architecture, seed) is not None:
            found = fingerprint(sources(SCENARIOS[name], architecture, seed, store))
            records.settle(name, architecture, seed, found)


def measure(case: Case, store: Store) -> list[Record]:
    """The records of a case."""
    scenario = SCENARIOS[case.setting.scenario]
    models = sources(scenario, case.setting.architecture, case.setting.seed, store)
    known = fingerprint(models)
    found = _measured(case, models, Tests(scenario, store), store)
    return [replace(record, sources=known) for record in found]


def _measured(case: Case, models: Sequence[nn.Module], tests: Tests, store: Store) -> list[Record]:
    if case.method == REFERENCE_CASE:
        return _references(case, models, tests, store)
    start = time.perf_counter()
    try:
        merged = _merge(case, models, store)
    except PleasError as error:
        return [refused(case, error)]
    return [evaluated(case, merged, models, tests, seconds=time.perf_counter() - start)]


def evaluated(
    case: Case,
    merged: nn.Module,
    models: Sequence[nn.Module],
    tests: Tests,
    *,
    seconds: float = 0.0,
    note: str = "",
) -> Record:
    """What a merged network is worth, and its size relative to the mean source."""
    example = tests.inputs[0][:2]
    base, cost = [pf.count(model, example) for model in models], pf.count(merged, example)
    flops = cost.flops * len(base) / sum(b.flops for b in base)
    params = cost.params * len(base) / sum(b.params for b in base)
    return _record(case, case.method, tests.merged(merged), flops, params, seconds, note)


def refused(case: Case, error: PleasError) -> Record:
    """Why there is no network."""
    return _record(case, case.method, [], note=f"{type(error).__name__}: {error}")


def _merge(case: Case, models: Sequence[nn.Module], store: Store) -> nn.Module:
    scenario, setting = SCENARIOS[case.setting.scenario], case.setting
    images = calibration(scenario, setting.seed, store)
    names = [part.labels for part in scenario.parts]
    example = torch.zeros(2, 1, 28, 28)
    request = Request(
        models,
        given(scenario, images),
        scenario.heads,
        names if scenario.heads == "joint" else None,
        setting.seed,
        example,
    )
    return METHODS[case.method].merge(request, case.budget)


def _references(
    case: Case, models: Sequence[nn.Module], tests: Tests, store: Store
) -> list[Record]:
    scenario, setting = tests.scenario, case.setting
    size = float(len(models))
    found = [_record(case, "own", tests.own(models), 1.0, 1.0)]
    kinds = list(ENSEMBLES) if scenario.heads != "separate" else ["ensemble"]
    found += [_record(case, kind, tests.ensemble(models, kind), size, size) for kind in kinds]
    if scenario.heads != "separate":
        each = [
            tests.one_network(model, part.labels)
            for model, part in zip(models, scenario.parts, strict=True)
        ]
        found.append(_record(case, "best-source", max(each, key=sum), 1.0, 1.0))
    network = ceiling(scenario, setting.architecture, setting.seed, store)
    right = tests.one_network(network, scenario.everything.labels)
    return [*found, _record(case, "all-labels", right, 1.0, 1.0)]


def _record(
    case: Case,
    method: str,
    accuracies: Sequence[float],
    flops: float = float("nan"),
    params: float = float("nan"),
    seconds: float = 0.0,
    note: str = "",
) -> Record:
    s = case.setting
    mean = sum(accuracies) / len(accuracies) if accuracies else float("nan")
    return Record(
        s.scenario,
        s.architecture,
        s.seed,
        method,
        case.budget,
        round(mean, 5),
        tuple(round(a, 5) for a in accuracies),
        round(flops, 4),
        round(params, 4),
        round(seconds, 2),
        note,
    )
