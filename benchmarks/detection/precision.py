"""Mean average precision of a detector's boxes, as COCO counts it (IoU 0.5, and 0.5 to 0.95)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from benchmarks.detection.scenes import Scenes

THRESHOLDS = np.linspace(0.5, 0.95, 10)
LEAST_SURE, OVERLAP = 0.001, 0.7  # of boxes that are kept, as ultralytics validates
UNHURRIED = 1e9  # seconds an image; a slow machine would lose boxes


@dataclass(frozen=True, slots=True)
class Precision:
    """Means over classes."""

    half: float  # boxes that overlap by half count
    strict: float  # mean over ten thresholds


def precision(raw: Tensor, scenes: Scenes, classes: int) -> Precision:
    """``raw``: (N, 4 + classes, places), decoded boxes and scores as a YOLO gives them."""
    from ultralytics.utils.metrics import ap_per_class
    from ultralytics.utils.nms import non_max_suppression

    found = non_max_suppression(
        raw, LEAST_SURE, OVERLAP, multi_label=True, nc=classes, max_time_img=UNHURRIED
    )
    right, sure, named = [], [], []
    for number, boxes in enumerate(found):
        objects = scenes.objects[scenes.objects[:, 0] == number]
        right.append(_matched(boxes, objects))
        sure.append(boxes[:, 4].numpy())
        named.append(boxes[:, 5].numpy())
    wanted = scenes.objects[:, 2].numpy()
    parts = (np.concatenate(part) for part in (right, sure, named))
    average = ap_per_class(*parts, wanted)[5]
    return Precision(float(average[:, 0].mean()), float(average.mean()))


def _matched(boxes: Tensor, objects: Tensor) -> npt.NDArray[np.bool_]:
    """(boxes, thresholds): whether a box is the surest one of an object that it overlaps enough."""
    from torchvision.ops import box_iou

    right = np.zeros((len(boxes), len(THRESHOLDS)), bool)
    free = np.ones((len(objects), len(THRESHOLDS)), bool)
    same = objects[:, None, 2] == boxes[None, :, 5]
    overlaps = (box_iou(objects[:, 3:], boxes[:, :4]) * same).numpy()
    columns = np.arange(len(THRESHOLDS))
    for number in np.flatnonzero((overlaps >= THRESHOLDS[0]).any(0)):  # the surest first
        open_to = np.where(free, overlaps[:, number, None], 0.0)
        best = open_to.argmax(0)
        right[number] = open_to[best, columns] >= THRESHOLDS
        free[best, columns] &= ~right[number]
    return right


def predictions(output: object) -> Tensor:
    """The decoded boxes of one YOLO's output, whatever it gives beside them."""
    while not isinstance(output, Tensor):
        assert isinstance(output, tuple | list)
        output = output[0]
    return output.detach()
