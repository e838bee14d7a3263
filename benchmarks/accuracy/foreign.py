"""How far images are from what a source's norms keep: own ones, others', and wrongly scaled ones.

``python -m benchmarks.accuracy.foreign``: what the bound in ``pleas_fx/complement`` was set by.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.accuracy import asked as common
from benchmarks.accuracy.scenarios import SCENARIOS, Scenario
from benchmarks.accuracy.sources import sources
from benchmarks.accuracy.tasks import Part, Store, training_images
from passes.lower import lower
from passes.synthesise import divergence
from passes.trace import trace

NAMES = ("same-task", "disjoint", "domains", "three-digits")
IMAGES = 16
SEED = 3  # of the images


def kinds(scenario: Scenario, store: Store) -> Iterator[tuple[str, Tensor]]:
    """Images by what they are to the first source."""
    parts = scenario.parts
    own = _some(parts[0], 256, store)
    yield f"{IMAGES} own", own[:IMAGES]
    yield "256 own", own
    if not scenario.same:
        each = [_some(part, IMAGES // len(parts), store) for part in parts]
        yield f"{IMAGES} of all sources", torch.cat(each)
        yield f"{IMAGES} of the last source", _some(parts[-1], IMAGES, store)
    if parts[0] != Part("mnist"):
        yield f"{IMAGES} handwritten digits", _some(Part("mnist"), IMAGES, store)
    yield f"{IMAGES} own, negatives", -own[:IMAGES]
    yield f"{IMAGES} own, times four less one", own[:IMAGES] * 4 - 1


def _some(part: Part, count: int, store: Store) -> Tensor:
    images = training_images(part, store)
    return images.some(len(images), SEED).inputs[:count]


def main() -> None:
    """A line for each kind of images and scenario."""
    parser = common.parser(__doc__)
    parser.add_argument("--architecture", default="resnet-narrow")
    given = parser.parse_args()
    store = common.store(given)
    for name in NAMES:
        scenario = SCENARIOS[name]
        model = sources(scenario, given.architecture, 0, store)[0].eval()
        program = lower(trace(model, (torch.zeros(2, 1, 28, 28),)))
        for kind, images in kinds(scenario, store):
            print(f"{name}: {kind}: {divergence(program, (images,)):.4f}", flush=True)


if __name__ == "__main__":
    main()
