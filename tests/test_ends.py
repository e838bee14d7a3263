"""How networks begin and end: the batch stays open, records are entered, outputs may need all."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2 import Normalize

import pleas_fx as pf
from passes.trace import trace
from tests.merging import outputs, worst
from tests.networks import noise
from tests.randomise import seeded
from tests.small_networks import two_convolutions

IMAGES = noise((12, 3, 6, 6))[0]
Head = Callable[["Network", Tensor], Any]


class Network(nn.Module):
    """Two convolutions with norms, and something done with the features."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.last = nn.Linear(6, 4)
        self.both = nn.Bilinear(6, 6, 4)
        self.head = head

    def forward(self, x: Tensor) -> Any:
        """Whatever the head makes of the features."""
        return self.head(self, self.second(self.first(x)))


@dataclass
class Found:
    """What somebody's network returns."""

    logits: Tensor
    features: Tensor


def record(network: Network, features: Tensor) -> Found:
    """A dataclass, one field of which the network itself reads."""
    found = Found(network.last(features.mean((2, 3))), features)
    return Found(found.logits * 2, features=found.features)


def example_by_example(network: Network, features: Tensor) -> Tensor:
    """A loop over the batch."""
    return torch.cat([network.last(f.mean((1, 2)))[None] for f in features])


def by_length(network: Network, features: Tensor) -> Tensor:
    """The batch as Python's own number."""
    return network.last(features.view(len(features), 6, -1).mean(2))


def by_windows(network: Network, features: Tensor) -> Tensor:
    """Windows of two by two, put together again as in Swin transformers."""
    windows = (
        features.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).reshape(-1, 6, 2, 2)
    )
    batch = int(windows.shape[0] / (6 * 6 / 2 / 2))
    whole = windows.relu().view(batch * 3, 3, 6, 2, 2).view(batch, 9, 6, 4)
    return network.last(whole.mean((1, 3)))


def bilinear(network: Network, features: Tensor) -> Tensor:
    """A last layer that no rule knows."""
    pooled = features.mean((2, 3))
    return network.both(pooled, pooled)


def distances(_: Network, features: Tensor) -> Tensor:
    """A last operator that no rule knows."""
    pooled = features.mean((2, 3))
    return F.pdist(pooled.T).expand(features.shape[0], -1) + pooled.sum(1, keepdim=True)


def strongest(_: Network, features: Tensor) -> Tensor:
    """The same, of a method."""
    return features.amax((2, 3)).topk(3, 1).values


def sources(head: Head) -> list[nn.Module]:
    """Two with other parameters."""
    return [seeded(lambda: Network(head), seed) for seed in range(2)]


def merged(models: list[nn.Module], **options: object) -> pf.MergeResult:
    """In silence, with the images at hand."""
    return pf.merge(models, IMAGES, progress=False, synthetic=0, **options)  # type: ignore[arg-type]


def test_a_dataclass_becomes_a_dictionary() -> None:
    """Of the same tensors, which are outputs like any other: their channels stay in place."""
    models = sources(record)
    result = merged(models, width=2.0)
    with torch.no_grad():
        wanted = [model(IMAGES) for model in models]
        found = result.model(IMAGES)
    for ours, theirs in zip(found, wanted, strict=True):
        assert list(ours) == ["logits", "features"]
        assert worst([ours["logits"]], [theirs.logits]) < 1e-5
        assert worst([ours["features"]], [theirs.features]) < 1e-5
    held = {str(frozen.axis.key) for frozen in result.symmetry.frozen}
    assert {"last.weight", "second.0.weight"} <= held
    assert merged(models, flops=1.2).model(IMAGES)[1]["logits"].shape == (12, 4)


def test_hooks_of_a_network_that_returns_a_dataclass_take_part() -> None:
    """Its tensors are compared, too, where hooks may only be watching."""
    models = sources(record)
    for model in models:
        model.get_submodule("last").register_forward_hook(lambda _, __, result: 2 * result)
    with torch.no_grad():
        wanted = [model(IMAGES).logits for model in models]
        found = [own["logits"] for own in merged(models, width=2.0).model(IMAGES)]
    assert worst(found, wanted) < 1e-5


def test_a_loop_over_the_examples_is_refused() -> None:
    """Its graph is as long as the example; the control: the same without the loop."""
    with pytest.raises(pf.TraceError, match="batches of 2 only"):
        merged(sources(example_by_example), width=1.0)
    plain = trace(sources(bilinear)[0], (IMAGES[:2],))
    looped = trace(sources(example_by_example)[0], (IMAGES[:2],))
    assert (plain.general, looped.general) == (True, False)
    assert len(outputs(looped.module, (IMAGES[:3],))[0]) == 2  # of three


@pytest.mark.parametrize("head", [by_length, by_windows])
def test_numbers_made_of_the_batch_follow_it(head: Head) -> None:
    """Whatever multiple of it they are, and for any batch."""
    models = sources(head)
    program = trace(models[0], (IMAGES[:2],))
    assert program.general
    for size in (1, 5, 12):
        found = outputs(program.module, (IMAGES[:size],))
        assert worst(found, outputs(models[0], (IMAGES[:size],))) < 1e-6
    wanted = [result for model in models for result in outputs(model, (IMAGES,))]
    assert worst(outputs(merged(models, width=2.0).model, (IMAGES,)), wanted) < 1e-5
    assert merged(models, flops=0.7).report.merged.flops > 0


def test_an_exported_graph_for_one_batch_size_is_refused() -> None:
    """Exported without a dynamic batch."""
    models = [torch.export.export(m, (IMAGES[:2],)).module() for m in sources(bilinear)]
    with pytest.raises(pf.TraceError):
        merged(models, width=1.0)


@pytest.mark.parametrize("head", [bilinear, distances, strongest])
def test_an_output_may_need_all_channels(head: Head) -> None:
    """Apart it is exact; behind merged channels each source's own head reads what is merged."""
    models = sources(head)
    apart = merged(models, width=2.0)
    wanted = [result for model in models for result in outputs(model, (IMAGES,))]
    assert worst(outputs(apart.model, (IMAGES,)), wanted) < 1e-5
    twins = [models[0], copy.deepcopy(models[0])]
    together = merged(twins, width=1.0)
    assert worst(outputs(together.model, (IMAGES,)), 2 * outputs(models[0], (IMAGES,))) < 1e-4
    assert together.report.merged.flops < 1.1 * together.report.sources[0].flops


def test_heads_behind_merged_channels_are_each_sources_own() -> None:
    """Only the heads differ, and the outputs with them."""
    models = sources(bilinear)
    features = models[0].state_dict()
    other = {
        k: v if k.startswith("both") else features[k] for k, v in models[1].state_dict().items()
    }
    models[1].load_state_dict(other)
    wanted = [result for model in models for result in outputs(model, (IMAGES,))]
    found = outputs(merged(models, width=1.0).model, (IMAGES,))
    assert worst(found, wanted) < 1e-4
    assert worst(found[:1], wanted[1:]) > 0.1  # the control: they do differ


class ByName(nn.Module):
    """Takes its input by name only."""

    def forward(self, *, x: Tensor) -> Tensor:
        """Half of it."""
        return x / 2


class Nothing(nn.Module):
    """Returns a number."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> int:
        """How many dims there are."""
        return self.layer(x).dim()


@pytest.mark.parametrize("model", [ByName(), Nothing()])
def test_what_can_not_be_called_or_returns_nothing_is_refused(model: nn.Module) -> None:
    """By an error of ours."""
    with pytest.raises(pf.TraceError):
        trace(model, (IMAGES[:2],))


def test_sources_may_normalise_their_images_in_their_own_ways(tmp_path: Path) -> None:
    """Each with what stands before it; the merged network takes raw images, also as ONNX."""
    ways = [([0.4, 0.5, 0.6], [0.2, 0.3, 0.2]), ([0.5] * 3, [0.5] * 3)]
    models = [
        nn.Sequential(Normalize(*way), seeded(two_convolutions, seed)).eval()
        for seed, way in enumerate(ways)
    ]
    images = IMAGES.abs()
    wanted = [t for model in models for t in outputs(model, (images,))]
    whole = pf.merge(models, images, width=2.0, progress=False, synthetic=0)
    assert worst(outputs(whole.model, (images,)), wanted) < 1e-5
    part = pf.merge(models, images, flops=1.0, progress=False, synthetic=0)
    part.save(tmp_path / "out")
    again = outputs(pf.load(tmp_path / "out"), (images,))
    assert worst(again, outputs(part.model, (images,))) < 1e-5
