"""Train the sources once and keep them as files; every step follows from the seed."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.accuracy.architectures import ARCHITECTURES, PEAK_RATE
from benchmarks.accuracy.data import BLACK
from benchmarks.accuracy.tasks import Store, Task, joined
from fixtures.shifting import shifted

EPOCHS, TUNING_EPOCHS = 4, 2
BATCH = 128
RATE, TUNING = 0.2, 0.25  # tuning: share of the rate


@dataclass(frozen=True, slots=True)
class Trained:
    """A network that is trained on first use. ``base``: the task it was trained for before."""

    architecture: str
    task: Task
    seed: int
    base: Task | None = None

    @property
    def file(self) -> str:
        """Where it is kept."""
        start = f"-from-{self.base}" if self.base else ""
        return f"{self.architecture}/{self.task}{start}-{self.seed}.safetensors"


def get(network: Trained, store: Store) -> nn.Module:
    """The trained network in eval mode, from its file when there is one."""
    model = ARCHITECTURES[network.architecture](len(network.task.labels))
    path = store.networks / network.file
    if path.exists():
        model.load_state_dict(load_file(path))
        return model.eval()
    torch.manual_seed(network.seed)
    model = ARCHITECTURES[network.architecture](len(network.task.labels))
    if network.base is not None:
        _start_from(model, network, store)
    rate = PEAK_RATE.get(network.architecture, RATE) * (TUNING if network.base else 1.0)
    _train(model, network, store, rate, TUNING_EPOCHS if network.base else EPOCHS)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, partial)
    os.replace(partial, path)
    return model.eval()


def _start_from(model: nn.Module, network: Trained, store: Store) -> None:
    """The weights of the base; those of a head with other classes stay as they are."""
    assert network.base is not None
    base = get(Trained(network.architecture, network.base, network.seed), store)
    own = model.state_dict()
    fitting = {k: v for k, v in base.state_dict().items() if v.shape == own[k].shape}
    model.load_state_dict({**own, **fitting})


def _train(model: nn.Module, network: Trained, store: Store, rate: float, epochs: int) -> None:
    """SGD with Nesterov momentum under a one-cycle schedule, on shifted images."""
    images = joined(network.task, store)
    inputs, labels = images.inputs, images.targets
    random = torch.Generator().manual_seed(network.seed)
    steps = len(images) // BATCH
    epochs = max(epochs, -(-epochs * 4000 // len(images)))  # small sets are seen more often
    optimiser = torch.optim.SGD(
        model.parameters(), rate, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, rate, total_steps=epochs * steps, pct_start=0.25, cycle_momentum=False
    )
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=random)[: steps * BATCH]
        for chosen in order.view(steps, BATCH):
            loss = F.cross_entropy(model(shifted(inputs[chosen], BLACK, random)), labels[chosen])
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
            schedule.step()
