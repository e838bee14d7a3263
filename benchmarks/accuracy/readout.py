"""What stops joint heads: the best readout of everything that the sources have, with labels.

``python -m benchmarks.accuracy.readout [--architecture A ...]``: classes 0-4 and 5-9 with one
output of ten. What both sources put in front of their last layers, side by side and nothing
thinned, read by logistic regression: towards the owners' answers to the calibration images or to
all training images, and towards the labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.accuracy import asked as common
from benchmarks.accuracy.evaluate import CHUNK, Tests, accuracy, answers
from benchmarks.accuracy.scenarios import SCENARIOS
from benchmarks.accuracy.sources import calibration, ceiling, sources
from benchmarks.accuracy.tasks import Store, Task, relabelled, training_images
from pleas_fx.algebra.softmax import fit_answers

NAME = "disjoint-joint"
PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4)  # the best is shown: an upper bound


def features(model: nn.Module, images: Tensor) -> Tensor:
    """(images, inputs of the last linear layer)."""
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    found: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda _, given: found.append(given[0].flatten(1)))
    with torch.inference_mode():
        for chunk in images.split(CHUNK):
            model(chunk)
    hook.remove()
    return torch.cat(found).double().clone()


def readout(z: Tensor, wanted: Tensor, tests: Tests, models: Sequence[nn.Module]) -> float:
    """Accuracy on test images, of the best of a few penalties."""
    names = Task(tests.scenario.parts).labels
    start = torch.zeros(len(names), z.shape[1], dtype=torch.float64), torch.zeros(len(names))
    best = 0.0
    seen = [torch.cat([features(m, x) for m in models], 1) for x in tests.inputs]
    for penalty in PENALTIES:
        found = fit_answers(z, wanted, *start, penalty)
        right = [
            accuracy(x @ found.weight.T + found.bias, torch.from_numpy(labels))
            for x, labels in zip(seen, _labels(tests, names), strict=True)
        ]
        best = max(best, float(np.mean(right)))
    return best


def _labels(tests: Tests, names: tuple[str, ...]) -> list[np.ndarray]:
    parts = zip(tests.scenario.parts, tests.images, strict=True)
    return [relabelled(part, images, names) for part, images in parts]


def owners_answers(models: Sequence[nn.Module], images: Sequence[Tensor]) -> Tensor:
    """(all images, classes of all sources): each source's probabilities of its own."""
    own = [answers(m, x)[0].double().softmax(1) for m, x in zip(models, images, strict=True)]
    whole: Tensor = torch.block_diag(*own)
    return whole


def line(architecture: str, seed: int, store: Store) -> str:
    """A row of the table."""
    scenario = SCENARIOS[NAME]
    models = [m.eval() for m in sources(scenario, architecture, seed, store)]
    tests = Tests(scenario, store)
    names = Task(scenario.parts).labels
    few = calibration(scenario, seed, store)
    assert few is not None
    every = [training_images(part, store) for part in scenario.parts]
    all_images = [images.inputs for images in every]
    labels = np.concatenate(
        [relabelled(p, i, names) for p, i in zip(scenario.parts, every, strict=True)]
    )
    few_z, all_z = (
        torch.cat([features(m, torch.cat(list(x))) for m in models], 1) for x in (few, all_images)
    )
    true = torch.eye(len(names), dtype=torch.float64)[torch.from_numpy(labels)]
    whole = ceiling(scenario, architecture, seed, store).eval()
    figures = [
        float(np.mean(tests.one_network(whole, names))),
        readout(all_z, true, tests, models),
        readout(all_z, owners_answers(models, all_images), tests, models),
        readout(few_z, owners_answers(models, few), tests, models),
    ]
    return f"| {architecture} | " + " | ".join(f"{100 * f:.1f}" for f in figures) + " |"


def main() -> None:
    """A row for every architecture."""
    parser = common.parser(__doc__)
    parser.add_argument("--architecture", nargs="+", default=["resnet-narrow"])
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    store = common.store(given)
    print("| | one network, all labels | labels | owners' answers | to calibration images |")
    print("|---|---:|---:|---:|---:|")
    for architecture in given.architecture:
        print(line(architecture, given.seed, store), flush=True)


if __name__ == "__main__":
    main()
