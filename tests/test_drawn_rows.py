"""Which positions layers are fitted on: unusual ones more often, as the images' owner sees them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pleas_fx as pf
from passes import _targets
from passes._lockstep import Store
from passes._targets import Sampling, Targets
from passes.trace import trace
from pleas_fx.ir import FloatArray
from tests.randomise import seeded

SIDE, FEWEST = 64, 500  # pixels; positions that are drawn of an image
OBJECT = slice(0, 8)  # rows and columns of it, a sixty-fourth of an image


def scene(where: slice, channel: int) -> Tensor:
    """Noise, and an object that one channel tells from it."""
    image = 0.1 * torch.randn(1, 2, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    image[:, channel, where, where] += 5.0
    return image


def seen_share(owners: tuple[int | None, ...], images: list[Tensor], batch: int) -> float:
    """Of the positions drawn of an image, how many lie on the object in the upper left corner.

    Source s sees channel s only.
    """
    programs = []
    for source in range(2):
        layer = nn.Conv2d(2, 3, 1).requires_grad_(False)
        layer.weight[:, 1 - source] = 0
        programs.append(trace(nn.Sequential(layer).eval(), (images[0],)))
    node = next(n.name for n in programs[0].module.graph.nodes if n.op == "call_module")
    store = Store(1 << 30)
    targets = Targets(programs[0], Sampling(1, 0, owners, frozenset(), 1.0), store)
    targets.complete({node}, programs, [(image,) for image in images])
    rows, columns = np.divmod(targets.at(node, batch, FEWEST), SIDE)
    store.close()
    return float(((rows < OBJECT.stop) & (columns < OBJECT.stop)).mean())


def test_objects_are_drawn_more_often_than_background(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the rows by their distance from the mean; the control draws all at random."""
    monkeypatch.setattr(_targets, "FEWEST_ROWS", FEWEST)
    assert seen_share((0,), [scene(OBJECT, 0)], 0) > 0.08  # all of it: 64 of 500
    monkeypatch.setattr(_targets, "UNUSUAL", 0.0)
    assert seen_share((0,), [scene(OBJECT, 0)], 0) < 0.04


@pytest.mark.parametrize(("owner", "least", "most"), [(1, 0.08, 1.0), (0, 0.0, 0.04)])
def test_what_is_unusual_is_said_by_the_owner(
    owner: int, least: float, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The object is in the second source's channel; the first one doesn't see it."""
    monkeypatch.setattr(_targets, "FEWEST_ROWS", FEWEST)
    assert least <= seen_share((owner,), [scene(OBJECT, 1)], 0) <= most


def test_without_owners_sources_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of two images is drawn from by what the second source makes of it."""
    monkeypatch.setattr(_targets, "FEWEST_ROWS", 2 * FEWEST)
    images = [scene(OBJECT, 1), scene(OBJECT, 1)]
    assert seen_share((None, None), images, 0) < 0.04
    assert seen_share((None, None), images, 1) > 0.08


def test_a_sample_is_drawn_once_and_used_from_its_beginning() -> None:
    """Fewer rows are the first of more, each position once, with every share above nothing."""
    shares = np.random.default_rng(0).dirichlet(np.ones(1000))
    some = _targets._draw(np.random.default_rng(1), shares, 100)
    every = _targets._draw(np.random.default_rng(1), shares, 1000)
    assert np.array_equal(some, every[:100])
    assert np.array_equal(np.sort(every), np.arange(1000))


def test_positions_are_drawn_as_their_shares_say() -> None:
    """Of the first draws of many samples; the control's shares are equal."""
    shares, equal = np.array([0.5, 0.3, 0.2]), np.ones(3) / 3

    def drawn(given: FloatArray) -> FloatArray:
        firsts = [_targets._draw(np.random.default_rng(k), given, 1)[0] for k in range(4000)]
        return np.bincount(firsts, minlength=3) / len(firsts)

    assert np.abs(drawn(shares) - shares).max() < 0.02
    assert np.abs(drawn(equal) - shares).max() > 0.1


def test_a_constant_value_is_drawn_at_random() -> None:
    """Nothing is unusual in it; nor in what has NaN, which is refused where it is read."""
    for value in (torch.ones(2, 3, 4, 4), torch.full((2, 3, 4, 4), torch.nan)):
        assert np.allclose(_targets._shares(value, 1), 1 / 32)


def test_small_objects_survive_a_merge(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a narrow merged network makes of objects; the control's rows are drawn at random."""
    sources = [seeded(_detector, seed) for seed in range(2)]
    images = [
        torch.cat([scene(OBJECT, s).roll((8 * k, 8 * k), (2, 3)) for k in range(8)])
        for s in range(2)
    ]
    monkeypatch.setattr(_targets, "FEWEST_ROWS", FEWEST)
    errors = []
    for share in (_targets.UNUSUAL, 0.0):
        monkeypatch.setattr(_targets, "UNUSUAL", share)
        result = pf.merge(sources, images, flops=1.0, synthetic=0, progress=False)
        errors.append(sum(_on_object(result.model, sources, images)))
    assert errors[0] < errors[1]


def _detector() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 1, 1),
    )


def _on_object(model: nn.Module, sources: list[nn.Module], images: list[Tensor]) -> list[float]:
    """Per source, the relative error of its own output where its images show an object."""
    found = []
    with torch.no_grad():
        for s, batch in enumerate(images):
            wanted, made = sources[s](batch), model(batch)[s]
            there = batch[:, s : s + 1] > 2.5
            error = (made - wanted)[there].square().mean() / wanted[there].square().mean()
            found.append(float(error.sqrt()))
    return found
