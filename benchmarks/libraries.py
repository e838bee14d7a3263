"""Merge one architecture as two libraries write it at full width, which has to be exact.

    python -m benchmarks.libraries

With the extra `zoo`. Writes docs/libraries.md. Weights are random: what is tried is whether two
graphs are known to be one.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import timm
import torch
from torch import nn
from torch.fx.experimental.optimization import fuse

import pleas_fx as pf
from benchmarks.merge_cost import network

DOCS = Path(__file__).resolve().parents[1] / "docs"
SIZE = 96  # pixels
PAIRS = {  # names in torchvision and in timm
    "resnet18": "resnet18",
    "resnet50": "resnet50",
    "resnext50_32x4d": "resnext50_32x4d",
    "wide_resnet50_2": "wide_resnet50_2",
    "densenet121": "densenet121",
    "vgg11_bn": "vgg11_bn",
    "mobilenet_v2": "mobilenetv2_100",
    "mobilenet_v3_small": "mobilenetv3_small_100",
    "mnasnet1_0": "mnasnet_100",
    "efficientnet_b0": "efficientnet_b0",
    "efficientnet_v2_s": "efficientnetv2_rw_s",
    "regnet_y_400mf": "regnety_004",
    "inception_v3": "inception_v3",
    "convnext_tiny": "convnext_tiny",
}
HEAD = f"""# One architecture in other words

Written by `python -m benchmarks.libraries`: two networks of one architecture with random weights,
merged at full width on images of {SIZE}x{SIZE}; one of torchvision, and one of timm, one of
torchvision that was exported (`torch.export`), or one whose batch norms were folded away. Relative
error of the outputs, the larger (float32), or the reason of the refusal ([what is no difference
](decisions/2026-12-01-same-graph.md)).

| torchvision | timm | exported | folded |
|---|---|---|---|
"""


def tried(first: nn.Module, other: nn.Module) -> str:
    """The error, or the refusal."""
    images = torch.rand(4, 3, SIZE, SIZE)
    try:
        merged = pf.merge([first, other], images, width=2.0, progress=False, synthetic=0).model
    except pf.PleasError as error:
        return str(error)
    with torch.no_grad():
        found = zip(merged(images), (first(images), other(images)), strict=True)
        return f"{max(float((a - b).norm() / b.norm()) for a, b in found):.0e}"


def of_timm(name: str) -> nn.Module:
    """With random norms."""
    model: nn.Module = timm.create_model(name)
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if key.endswith(("running_mean", "running_var")):
                tensor.uniform_(0.5, 1.5)
    return model.eval()


def exported(model: nn.Module) -> nn.Module:
    """Its program, for any number of images."""
    sizes = ({0: torch.export.Dim("batch", min=2, max=512)},)
    images = (torch.rand(4, 3, SIZE, SIZE),)
    program = torch.export.export(model, images, dynamic_shapes=sizes)
    made: nn.Module = program.module()
    return made


def main() -> None:
    """Try every pair and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--docs", type=Path, default=DOCS)
    docs = parser.parse_args().docs
    lines = []
    for name, theirs in PAIRS.items():
        first, second = network(name, 0), network(name, 1)
        others = (of_timm(theirs), exported(copy.deepcopy(second)), fuse(second).eval())
        lines.append(f"| {name} | {' | '.join(tried(first, other) for other in others)} |\n")
        print(lines[-1], end="", flush=True)
    (docs / "libraries.md").write_text(HEAD + "".join(lines))


if __name__ == "__main__":
    main()
