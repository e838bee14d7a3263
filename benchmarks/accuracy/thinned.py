"""What stops three and four sources in one budget: each source thinned to its share, by itself.

``python -m benchmarks.accuracy.thinned [--architecture A ...]``: every source alone, with one part
in three or four of its FLOPs, fitted to its own calibration images and to many more, tested on its
own domain. There is nothing to share the channels or the outputs with.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import torch
from torch import Tensor, nn

from benchmarks.accuracy import asked as common
from benchmarks.accuracy.architectures import ARCHITECTURES
from benchmarks.accuracy.evaluate import Tests
from benchmarks.accuracy.methods import METHODS
from benchmarks.accuracy.rivals.aligned import Request
from benchmarks.accuracy.scenarios import SCENARIOS
from benchmarks.accuracy.sources import calibration, sources
from benchmarks.accuracy.tasks import Store, training_images

NAMES = ("three-digits", "four-domains")
MANY = 4096  # of a source, or as many as there are


def thinned(
    models: Sequence[nn.Module], images: Sequence[Tensor], share: float, seed: int
) -> list[nn.Module]:
    """Every source with a share of its FLOPs, fitted to its own images."""
    example = torch.zeros(2, 1, 28, 28)
    alone = METHODS["one-source"].merge
    return [
        alone(Request([model], own, "shared", None, seed, example), share)
        for model, own in zip(models, images, strict=True)
    ]


def line(name: str, architecture: str, seed: int, store: Store) -> str:
    """A row of the table."""
    scenario = SCENARIOS[name]
    models, tests = sources(scenario, architecture, seed, store), Tests(scenario, store)
    few = calibration(scenario, seed, store)
    assert few is not None
    every = [training_images(part, store) for part in scenario.parts]
    many = [images.some(min(MANY, len(images)), seed).inputs for images in every]
    share = 1 / len(models)
    figures = [
        fmean(tests.own(networks))
        for networks in (
            models,
            thinned(models, few, share, seed),
            thinned(models, many, share, seed),
        )
    ]
    return f"| {name} | {architecture} | " + " | ".join(f"{100 * f:.1f}" for f in figures) + " |"


def main() -> None:
    """A row for every scenario and architecture."""
    parser = common.parser(__doc__)
    parser.add_argument("--architecture", nargs="+", default=list(ARCHITECTURES))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    store = common.store(given)
    print("| | | whole | its share, own calibration images | its share, many images |")
    print("|---|---|---:|---:|---:|")
    for name in NAMES:
        for architecture in given.architecture:
            print(line(name, architecture, given.seed, store), flush=True)


if __name__ == "__main__":
    main()
