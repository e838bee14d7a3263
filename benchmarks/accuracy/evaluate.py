"""Accuracies of sources, ensembles and merged networks on a scenario's test images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from benchmarks.accuracy.scenarios import Scenario
from benchmarks.accuracy.tasks import Store, Task, relabelled, test_images

CHUNK = 50  # their activations stay in a processor's cache
Outputs = Sequence[Tensor]  # one (N, own classes) a source


class Tests:
    """The test images of every part, and how a scenario counts an answer as right."""

    def __init__(self, scenario: Scenario, store: Store) -> None:
        self.scenario = scenario
        self.names = Task(scenario.parts).labels
        self.images = [test_images(part, store) for part in scenario.parts]
        self.inputs = [own.inputs for own in self.images]
        if scenario.same:
            self.images, self.inputs = self.images[:1], self.inputs[:1]

    def merged(self, model: nn.Module) -> list[float]:
        """Of a merged network, a figure a part."""
        found = []
        for k, x in enumerate(self.inputs):
            outputs = answers(model, x)
            logits = outputs[k] if self.scenario.heads == "separate" else outputs[0]
            found.append(self._right(k, logits))
        return found

    def one_network(self, model: nn.Module, names: Sequence[str]) -> list[float]:
        """Of a network with the given classes; with own outputs it is told which are possible."""
        found = []
        for k, x in enumerate(self.inputs):
            logits = answers(model, x)[0]
            own = self._own_names(k)
            full = torch.full((len(logits), len(own)), -torch.inf)
            for place, name in enumerate(own):
                if name in names:
                    full[:, place] = logits[:, list(names).index(name)]
            found.append(self._right(k, full))
        return found

    def own(self, models: Sequence[nn.Module]) -> list[float]:
        """Each source on its own part."""
        parts = self.scenario.parts
        if self.scenario.same:
            right = [self.one_network(m, parts[0].labels)[0] for m in models]
            return [sum(right) / len(right)]
        return [
            accuracy(answers(model, x)[0], images.targets)
            for model, x, images in zip(models, self.inputs, self.images, strict=True)
        ]

    def ensemble(self, models: Sequence[nn.Module], kind: str) -> list[float]:
        """Of the sources together, by ENSEMBLES[kind]."""
        found = []
        for k, x in enumerate(self.inputs):
            if self.scenario.heads == "separate":
                found.append(self._right(k, answers(models[k], x)[0]))
                continue
            outputs = [answers(model, x)[0] for model in models]
            places = [
                [self.names.index(name) for name in part.labels] for part in self.scenario.parts
            ]
            found.append(self._right(k, ENSEMBLES[kind](outputs, places, len(self.names))))
        return found

    def _own_names(self, part: int) -> tuple[str, ...]:
        separate = self.scenario.heads == "separate"
        return self.scenario.parts[part].labels if separate else self.names

    def _right(self, part: int, logits: Tensor) -> float:
        names = self._own_names(part)
        labels = relabelled(self.scenario.parts[part], self.images[part], names)
        return accuracy(logits, torch.from_numpy(labels))


def answers(model: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """All outputs of a network, as a tuple."""
    with torch.inference_mode():
        parts = [model(chunk) for chunk in x.split(CHUNK)]
    if isinstance(parts[0], Tensor):
        return (torch.cat(parts),)
    return tuple(torch.cat(own) for own in zip(*parts, strict=True))


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of the largest logits that are at the label."""
    return float((logits.argmax(1) == labels).double().mean())


Places = Sequence[Sequence[int]]


def _mean(outputs: Outputs, places: Places, size: int, fill: float) -> Tensor:
    """Mean over those that know a class."""
    total = torch.zeros(len(outputs[0]), size)
    known = torch.zeros(size)
    for values, own in zip(outputs, places, strict=True):
        total[:, list(own)] += values
        known[list(own)] += 1
    return torch.where(known > 0, total / known.clamp_min(1), fill)


def mean_logits(outputs: Outputs, places: Places, size: int) -> Tensor:
    """The exact ensemble that a network of full width is."""
    return _mean(outputs, places, size, -torch.inf)


def mean_probabilities(outputs: Outputs, places: Places, size: int) -> Tensor:
    """Softmax of every source first."""
    return _mean([values.softmax(1) for values in outputs], places, size, 0.0)


def more_confident(outputs: Outputs, places: Places, size: int) -> Tensor:
    """The answer of the source with the largest probability."""
    result = torch.zeros(len(outputs[0]), size)
    for values, own in zip(outputs, places, strict=True):
        probabilities = torch.zeros(len(values), size)
        probabilities[:, list(own)] = values.softmax(1)
        result = torch.maximum(result, probabilities)
    return result


ENSEMBLES: dict[str, Callable[[Outputs, Places, int], Tensor]] = {
    "ensemble": mean_logits,
    "ensemble-probabilities": mean_probabilities,
    "ensemble-confident": more_confident,
}
