"""Images whose owner isn't named get the source that knows them, where one of them must."""

from __future__ import annotations

import copy
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pleas_fx as pf
from fixtures.load import calibration, sources, test_set
from passes.attribute import attribute
from passes.trace import trace
from pleas_fx.calibration import Batches, PerSource, collect
from pleas_fx.ir import Program
from pleas_fx.owners import attributed, exclusive
from tests.merging import of_images
from tests.networks import NETWORKS

EACH = 200


@cache
def mixed() -> tuple[Tensor, np.ndarray]:
    """Images of both sources in a random order, and whose they are."""
    images = torch.cat([own[:EACH] for own in calibration()])
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(3))
    return images[order], (order >= EACH).long().numpy()


def programs(*models: nn.Module) -> list[Program]:
    """Traced on two images."""
    return [trace(model, (mixed()[0][:2],)) for model in models]


def right(models: tuple[nn.Module, ...], images: Tensor, owners: np.ndarray) -> float:
    """The share of the images that get their owner."""
    found = attribute(programs(*models), [(part,) for part in images.split(64)])
    assert found is not None
    return float((found == owners).mean())


def test_most_images_get_their_owner() -> None:
    """By norms and answers; control: a source against itself."""
    images, owners = mixed()
    assert right(sources(), images, owners) > 0.85
    assert right((sources()[0],) * 2, images, owners) < 0.6


def test_an_owner_of_few_images_keeps_them() -> None:
    """The signs are compared as they are: no share of either source is assumed."""
    images, owners = mixed()
    kept = (owners == 1) | (np.cumsum(owners == 0) <= EACH // 10)
    assert right(sources(), images[torch.from_numpy(kept)], owners[kept]) > 0.8


def test_sources_change_places_with_their_images() -> None:
    """Nothing depends on which source comes first."""
    images, owners = mixed()
    first, second = sources()
    assert right((second, first), images, 1 - owners) == right((first, second), images, owners)


def test_without_norms_or_classes_nobody_can_tell() -> None:
    """A network without norms, and one whose outputs are values."""
    plain = NETWORKS["vgg"].make(0)
    for module in plain.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
    inputs = NETWORKS["vgg"].inputs()
    assert attribute([trace(plain, inputs)] * 2, [inputs]) is None
    values = copy.deepcopy(sources()[0])
    with torch.no_grad():
        values.fc.bias += 1000  # type: ignore[operator,union-attr]
    assert attribute(programs(values, sources()[1]), [(mixed()[0][:64],)]) is None


@pytest.mark.parametrize(
    ("heads", "classes", "expected"),
    [
        ("joint", None, True),
        ("joint", [["a", "b"], ["c"]], True),
        ("joint", [["a", "b"], ["b", "c"]], False),
        ("shared", None, False),
        ("separate", None, False),
    ],
)
def test_owners_are_looked_for_where_only_one_source_knows(
    heads: str, classes: list[list[str]] | None, expected: bool
) -> None:
    """Elsewhere the mean of the sources is an answer as well."""
    data = collect(mixed()[0])
    assert exclusive(heads, classes) == expected
    found, notes = attributed(programs(*sources()), data, heads, classes)
    assert (None not in found.owners) == expected
    assert bool(notes) == expected
    assert all("--calibration once for each source" in note for note in notes)


def test_named_owners_stay_and_no_image_is_lost() -> None:
    """Those given and those found, each image once."""
    own = collect(PerSource([mixed()[0][:64], mixed()[0][64:128]]))
    rest = collect(mixed()[0][128:])
    data = Batches((*own.batches, *rest.batches), (*own.owners, *rest.owners))
    found, _ = attributed(programs(*sources()), data, "joint", None)
    assert found.owners[: len(own.owners)] == own.owners
    kept = torch.cat([batch[0] for batch in found.batches])
    assert torch.equal(kept.flatten(1).sum(1).sort()[0], mixed()[0].flatten(1).sum(1).sort()[0])
    assert max(len(batch[0]) for batch in found.batches) <= 64


def test_classes_of_nameless_images_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """One output of ten, images in any order; control: the same with nobody's images."""

    def accuracy() -> float:
        result = pf.merge(
            list(sources()), mixed()[0], width=1.0, heads="joint", method="side-by-side",
            progress=False,
        )  # fmt: skip
        images, labels = (given[:1000] for given in test_set())
        return float((of_images(result.model, images)[0].argmax(1) == labels).float().mean())

    found = accuracy()
    monkeypatch.setattr("pleas_fx.compiler.attributed", lambda _, data, *__: (data, ()))
    assert found > accuracy() + 0.1


def test_at_full_width_the_result_is_the_exact_ensemble() -> None:
    """Nothing is attributed there; control: images with owners."""
    images, owners = mixed()
    each = pf.PerSource([images[torch.from_numpy(owners == s)] for s in range(2)])
    with torch.no_grad():
        wanted = torch.cat([model(images[:64]) for model in sources()], 1)
        exact, taught = (
            pf.merge(list(sources()), given, width=2.0, heads="joint", progress=False).model(
                images[:64]
            )
            for given in (images, each)
        )
    assert float((exact - wanted).abs().max() / wanted.abs().max()) < 1e-4
    assert float((taught - wanted).abs().max() / wanted.abs().max()) > 1e-2
