"""Train a YOLO of ultralytics once and keep it as a file; every step follows from the seed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.detection.scenes import SIZE, Kind, Scenes, scenes

STEPS, BATCH = 1200, 32
RATE = 2e-3


@dataclass(frozen=True, slots=True)
class Detector:
    """A network that is trained on first use."""

    config: str
    kind: Kind
    seed: int

    @property
    def file(self) -> str:
        """Where it is kept."""
        return f"{self.config}-{self.kind.name}-{self.seed}.safetensors"


def get(detector: Detector, networks: Path, data: Path) -> nn.Module:
    """The trained network in eval mode, from its file when there is one."""
    torch.manual_seed(detector.seed)
    model: nn.Module = _network(detector)
    path = networks / detector.file
    if path.exists():
        model.load_state_dict(load_file(path))
        return model.eval()
    _train(model, detector, data)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, partial)
    os.replace(partial, path)
    return model.eval()


def _network(detector: Detector) -> Any:
    from ultralytics.cfg import get_cfg
    from ultralytics.nn.tasks import DetectionModel

    classes = len(detector.kind.classes)
    model = DetectionModel(f"{detector.config}.yaml", nc=classes, verbose=False)
    model.args = get_cfg()
    return model


def _train(model: Any, detector: Detector, data: Path) -> None:
    """AdamW under a one-cycle schedule; no scene comes twice."""
    optimiser = torch.optim.AdamW(model.parameters(), RATE, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=STEPS)
    model.train()
    for step in range(STEPS):
        batch = scenes([detector.kind], BATCH, 1000 * detector.seed + step, test=False, folder=data)
        loss, _ = model(_labelled(batch))
        optimiser.zero_grad()
        torch.autograd.backward(loss.sum())
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimiser.step()
        schedule.step()
        if step % 100 == 0:
            value = float(loss.detach().sum()) / BATCH
            print(f"{detector.file}: step {step}, loss {value:.2f}", flush=True)


def _labelled(batch: Scenes) -> dict[str, Tensor]:
    """As ultralytics' losses take it: boxes as centre, width and height, in parts of the image."""
    left, top, right, bottom = (batch.objects[:, 3:] / SIZE).unbind(1)
    boxes = torch.stack(((left + right) / 2, (top + bottom) / 2, right - left, bottom - top), 1)
    return {
        "img": batch.images,
        "batch_idx": batch.objects[:, 0],
        "cls": batch.objects[:, 2:3],
        "bboxes": boxes,
    }
