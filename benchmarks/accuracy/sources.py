"""The sources of a scenario, its ceiling, and its calibration images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import pleas_fx as pf
from benchmarks.accuracy.scenarios import GARMENTS, Scenario
from benchmarks.accuracy.tasks import Part, Store, Task, training_images
from benchmarks.accuracy.training import Trained, get

DIGITS = 8  # of a fingerprint
PER_SEED = 10  # seeds of networks that one seed of the benchmark has for itself


def networks(scenario: Scenario, architecture: str, seed: int) -> list[Trained]:
    """What the sources are; two for the same task differ in their seeds."""
    base = Task((GARMENTS,)) if scenario.tuned else None
    return [
        Trained(
            architecture,
            Task((part,)),
            PER_SEED * seed + (k if scenario.same else 0),
            base,
        )
        for k, part in enumerate(scenario.parts)
    ]


def sources(scenario: Scenario, architecture: str, seed: int, store: Store) -> list[nn.Module]:
    """The trained sources."""
    return [get(network, store) for network in networks(scenario, architecture, seed)]


def fingerprint(models: Sequence[nn.Module]) -> str:
    """What tells networks from those that another processor trained by the same recipe."""
    digest = hashlib.sha256()
    for model in models:
        for tensor in model.state_dict().values():
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:DIGITS]


def ceiling(scenario: Scenario, architecture: str, seed: int, store: Store) -> nn.Module:
    """One network trained on everything with labels (as a third seed, for the same task)."""
    number = PER_SEED * seed + (2 if scenario.same else 0)
    return get(Trained(architecture, scenario.everything, number), store)


def calibration(scenario: Scenario, seed: int, store: Store) -> list[Tensor] | None:
    """Images for every source, from its own training data or from the other set."""
    if scenario.images == 0:
        return None
    share = scenario.images // len(scenario.parts)
    found = []
    for k, part in enumerate(scenario.parts):
        chosen = Part(scenario.calibration) if scenario.calibration else part
        images = training_images(chosen, store)
        # Sources with the same data get different images.
        found.append(images.some(len(images), seed).inputs[k * share : (k + 1) * share])
    return found


def given(scenario: Scenario, images: list[Tensor] | None) -> pf.PerSource | Tensor | None:
    """Calibration as the library takes it."""
    if images is None:
        return None
    if scenario.tagged:
        return pf.PerSource(images)
    mixed = torch.cat(images)
    order = torch.randperm(len(mixed), generator=torch.Generator().manual_seed(0))
    return mixed[order]
