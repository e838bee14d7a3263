"""What the detection benchmark shows and counts is what it says."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.accuracy.data import Images
from benchmarks.detection import scenes as made
from benchmarks.detection.precision import THRESHOLDS, _matched, predictions
from benchmarks.detection.run import Row, page
from benchmarks.detection.scenes import DIGITS, GARMENTS, OVERLAP, SIZE, Scenes


@pytest.fixture
def scenes(monkeypatch: pytest.MonkeyPatch) -> Scenes:
    """Of squares in place of digits and garments."""
    pixels = np.zeros((5, 28, 28), np.uint8)
    pixels[:, 4:20, 8:16] = 255
    squares = Images(pixels, np.arange(5))
    monkeypatch.setattr(made, "_images", lambda *_: squares)
    return made.scenes((DIGITS, GARMENTS), 40, 0, test=True, folder=Path())


def test_boxes_lie_in_the_image_and_hardly_overlap(scenes: Scenes) -> None:
    """Every scene has an object; a kind by itself has its own objects in the same images."""
    boxes = scenes.objects[:, 3:]
    assert bool((boxes >= 0).all())
    assert bool((boxes <= SIZE).all())
    assert scenes.objects[:, 0].unique().tolist() == list(range(40))
    for _, own in _by_scene(scenes):
        for one, other in combinations(own[:, 3:].int().tolist(), 2):
            assert made._overlap(tuple(one), tuple(other)) <= OVERLAP
    apart = [scenes.of_kind(kind).objects for kind in (0, 1)]
    assert sum(map(len, apart)) == len(scenes.objects)
    assert all(bool((own[:, 1] == kind).all()) for kind, own in enumerate(apart))


def test_an_object_differs_from_its_background_up_to_its_box(scenes: Scenes) -> None:
    """A square fills its box, so the edge of the box is an edge of the image, too."""
    steps = []
    for number, own in _by_scene(scenes):
        for left, top, _, bottom in own[:, 3:].int().tolist():
            if left >= 2:
                inside = scenes.images[number, :, top:bottom, left + 1].mean(1)
                outside = scenes.images[number, :, top:bottom, left - 2].mean(1)
                steps.append(float((inside - outside).abs().max()))
    assert np.median(steps) > 0.2


def test_a_seed_makes_the_same_scenes_and_tests_are_others(scenes: Scenes) -> None:
    """Of the same image set."""
    given = {"folder": Path()}
    again = made.scenes((DIGITS, GARMENTS), 40, 0, test=True, **given)
    trained_on = made.scenes((DIGITS, GARMENTS), 40, 0, test=False, **given)
    assert torch.equal(scenes.images, again.images)
    assert not torch.equal(scenes.images, trained_on.images)


def test_a_box_counts_where_it_overlaps_an_object_of_its_class_enough() -> None:
    """Once: the surest of two boxes on one object; half a box counts at few thresholds."""
    objects = torch.tensor([[0.0, 0, 2, 10, 10, 30, 30]])

    def right(*boxes: tuple[float, ...]) -> list[int]:
        return _matched(torch.tensor(boxes), objects).sum(1).tolist()

    exact = (10.0, 10, 30, 30, 0.9, 2)
    assert right(exact) == [len(THRESHOLDS)]
    assert right((10.0, 10, 30, 30, 0.9, 1)) == [0]
    assert right(exact, exact) == [len(THRESHOLDS), 0]
    assert right((10.0, 10, 30, 23.5, 0.9, 2)) == [4]  # an overlap of 0.675
    assert right((50.0, 50, 70, 70, 0.9, 2)) == [0]


def test_the_boxes_are_the_first_tensor_of_what_a_detector_gives() -> None:
    """Beside them it gives what it was trained on."""
    boxes = torch.rand(1, 6, 3)
    other: list[Tensor] = [torch.rand(2), torch.rand(2)]
    assert predictions((boxes, other)) is not None
    assert torch.equal(predictions((boxes, other)), predictions(boxes))


def test_the_page_has_a_line_a_case_and_means_over_seeds() -> None:
    """Two seeds of one case."""
    from benchmarks.detection.precision import Precision

    low, high = Precision(0.4, 0.2), Precision(0.6, 0.4)
    rows = [Row("pleas", 1.0, s, 1.0, 1.0, (p, p), (p, p)) for s, p in enumerate((low, high))]
    text = page(rows)
    assert "2 pairs" in text
    assert text.count("50.0 (30.0)") == 4


def _by_scene(scenes: Scenes) -> list[tuple[int, Tensor]]:
    numbers = scenes.objects[:, 0]
    return [(int(n), scenes.objects[numbers == n]) for n in numbers.unique()]
