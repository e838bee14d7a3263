"""The published PLeaS objective by its released solver: Adam, 401 steps, all layers at once.

Nasery et al. 2025, section 4.2, at full merging: inputs and raw outputs of matched layers averaged
over the sources; learning rate 5e-4 falling to zero by a cosine; batches of 32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.accuracy.rivals.aligned import Aligned, Request, align
from benchmarks.accuracy.rivals.layers import fitted_sites, recorded
from passes._rows import mean_rows
from passes.recalibrate import recalibrate
from passes.rewrite import Site

STEPS, RATE, BATCH = 401, 5e-4, 32


def published_adam(request: Request, steps: int = STEPS) -> nn.Module:
    """Matched on activations, all merged, every layer regressed by gradient steps."""
    aligned = align(request, "activations")
    sites = fitted_sites(aligned)
    parameters = [p for _, module in sites for p in module.parameters()]
    for p in parameters:
        p.requires_grad_(True)
    optimiser = torch.optim.Adam(parameters, RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    images = torch.cat([batch[0] for batch in aligned.data.batches])
    random = torch.Generator().manual_seed(request.seed)
    for _ in range(steps):
        chosen = torch.randint(0, len(images), (BATCH,), generator=random)
        loss = _loss(aligned, sites, images[chosen])
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        schedule.step()
    for p in parameters:
        p.requires_grad_(False)
    recalibrate(aligned.rewritten.module, aligned.data.batches)
    return aligned.rewritten.module


def _loss(aligned: Aligned, sites: list[tuple[Site, nn.Module]], images: Tensor) -> Tensor:
    names = {site.source for site, _ in sites}
    seen = []
    for program in aligned.programs:
        with recorded(program.module, names) as found:
            program.module(images)
            seen.append(dict(found))
    losses = []
    for site, module in sites:
        values = [own[site.source] for own in seen]
        x = torch.stack([x for x, _ in values]).mean(0)
        channel = 1 if values[0][1].dim() == 4 else -1
        outputs = [y.movedim(channel, 1) for _, y in values]
        target = mean_rows(outputs, site.rows).movedim(1, channel)
        losses.append(F.mse_loss(module(x), target))
    return torch.stack(losses).sum()
