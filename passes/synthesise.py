"""Stand-ins for calibration data: inputs that give every batch norm the statistics it keeps.

What a norm keeps of its training data says what these looked like on the way through the network.
Noise is moved until each norm sees the mean and the variance that it keeps; only inputs change, no
weight does. The loss is that of DeepInversion (Yin et al. 2020, R_feature), with the divergence of
normal distributions in place of squared differences, and without labels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from passes import _norms
from passes._lockstep import Batch
from pleas_fx.algebra.moments import at_least_float32
from pleas_fx.ir import Program

STEPS = 200  # at most
ENOUGH = 0.002  # divergence: of 256 images of the training data it is this or less
RATE = 0.1  # of the scale of the inputs, a step
SCALES = tuple(4.0**k for k in range(-2, 6))  # of inputs: normalised ones, and pixels up to 255
COARSE = 4  # pixels of the noise at first
INTERPOLATION = {1: "linear", 2: "bilinear", 3: "trilinear"}
BATCH = 64


@dataclass(frozen=True, slots=True)
class Synthesise:
    """Options of the pass."""

    name: str = "synthesise"
    seed: int = 0

    def run(
        self, programs: Sequence[Program], inputs: Batch, images: Sequence[int]
    ) -> tuple[tuple[Batch, ...], ...]:
        return synthesise(programs, inputs, images, seed=self.seed)


def synthesise(
    programs: Sequence[Program], inputs: Batch, images: Sequence[int], *, seed: int
) -> tuple[tuple[Batch, ...], ...]:
    """Batches of ``images[s]`` inputs for source ``s``, shaped like ``inputs``.

    None where a source keeps no statistics, or where no input is floating point.
    """
    possible = [feasible(program, inputs) for program in programs]
    return tuple(
        tuple(_batches(program.module, inputs, seed + number, wanted)) if able else ()
        for number, (program, wanted, able) in enumerate(
            zip(programs, images, possible, strict=True)
        )
    )


def feasible(program: Program, inputs: Batch) -> bool:
    """Whether there are norms that keep statistics, and inputs that can be moved."""
    return bool(_norms.keeping(program.module)) and any(t.is_floating_point() for t in inputs)


def divergence(program: Program, batch: Batch) -> float:
    """How far what the norms see of a batch is from what they keep, in the mean; NaN: none do.

    Of 16 images of the training data about 0.005, of another image set 0.1 and more, of images
    that aren't normalised as in training 0.5 and more (docs/decisions/2026-11-27-synthetic.md).
    """
    with torch.no_grad(), _norms.watched(program.module, _seen) as found:
        program.module(*batch)
    return float(torch.stack(found).mean()) if found else float("nan")


def _batches(source: fx.GraphModule, inputs: Batch, seed: int, images: int) -> Iterator[Batch]:
    module = _at_least_single(copy.deepcopy(source).eval().requires_grad_(False))
    for part in module.modules():
        if getattr(part, "inplace", False):  # would overwrite what the norms are compared on
            setattr(part, "inplace", False)  # noqa: B010 (no attribute of nn.Module)
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, images, BATCH):
        batch = tuple(_noise(t, min(BATCH, images - start), generator) for t in inputs)
        yield tuple(m.to(t.dtype) for m, t in zip(_moved(module, batch), inputs, strict=True))


def _at_least_single(module: nn.Module) -> nn.Module:
    """Statistics in half precision overflow, and steps towards them are rounded away."""
    half = any(p.dtype in (torch.float16, torch.bfloat16) for p in module.parameters())
    return module.float() if half else module


def _noise(like: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Smooth noise; an input that isn't floating point stays as the example has it."""
    shape = like.shape[1:]
    if not like.is_floating_point():
        return like[:1].expand(count, *shape).clone()
    space = tuple(shape[1:])
    if len(space) not in INTERPOLATION:
        noise = torch.randn(count, *shape, generator=generator)
    else:
        coarse = [-(-n // COARSE) for n in space]
        noise = torch.randn(count, shape[0], *coarse, generator=generator)
        noise = nn.functional.interpolate(noise, space, mode=INTERPOLATION[len(space)])
    return at_least_float32(noise.to(like))


def _moved(module: nn.Module, batch: Batch) -> Batch:
    """The batch, moved towards the statistics until it is near enough."""
    with torch.inference_mode(False), torch.enable_grad(), _norms.watched(module, _seen) as found:

        def loss(given: Batch) -> Tensor:
            found.clear()
            module(*given)
            return torch.stack(found).mean()

        scale = _best_scale(batch, loss)
        moving = [t.mul(scale).requires_grad_() for t in batch if t.is_floating_point()]
        optimiser = torch.optim.Adam(moving, lr=RATE * scale)
        for _ in range(STEPS):
            total = loss(_together(batch, moving))
            if float(total.detach()) < ENOUGH:
                break
            optimiser.zero_grad()
            total.backward()
            optimiser.step()
    return tuple(t.detach() for t in _together(batch, moving))


def _together(batch: Batch, moving: Sequence[Tensor]) -> Batch:
    ours = iter(moving)
    return tuple(next(ours) if t.is_floating_point() else t for t in batch)


def _best_scale(batch: Batch, loss: Callable[[Batch], Tensor]) -> float:
    """Inputs may be anything from normalised to 255; the statistics tell."""
    with torch.no_grad():
        tried = {
            scale: float(loss(tuple(t * scale if t.is_floating_point() else t for t in batch)))
            for scale in SCALES
        }
    return min(tried, key=lambda scale: tried[scale])


def _seen(norm: _BatchNorm, values: Tensor) -> Tensor:
    """One number: how far what a norm sees is from what it keeps."""
    rows = at_least_float32(values).transpose(0, 1).flatten(1)
    found = _norms.divergence(norm, rows.mean(1), rows.var(1, unbiased=False))
    return torch.log1p(found).mean()
