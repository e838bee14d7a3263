"""Without data: batch norm statistics of averaged channels from those of their sources."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from passes.recalibrate import correct_statistics
from passes.rewrite import Rewritten
from pleas_fx.ir import Axis, FloatArray, Matching, Program, members


def correct(programs: Sequence[Program], rewritten: Rewritten, matching: Matching) -> None:
    """Set the running statistics of merged channels; the correlation is the weights' cosine."""
    found: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    for site in rewritten.sites:
        if len(members(site.membership)) < 2:
            continue
        sources: list[Any] = [_module(p, site.source) for p in programs]
        if not isinstance(sources[0], nn.modules.batchnorm._BatchNorm):
            continue
        if sources[0].running_mean is None or (site.rows < 0).any():
            continue
        means = _rows([m.running_mean for m in sources], site.rows)
        variances = _rows([m.running_var for m in sources], site.rows)
        similarity = _similarity(rewritten, matching, site.source, site.rows[:, 0])
        found[site.module] = (means, variances, torch.from_numpy(similarity).to(means))
    correct_statistics(rewritten.module, found)


def _module(program: Program, path: str) -> nn.Module | None:
    try:
        return program.module.get_submodule(path)
    except AttributeError:
        return None


def _rows(tensors: Sequence[Tensor], rows: np.ndarray) -> Tensor:
    picked = [t.detach()[torch.from_numpy(rows[:, s])] for s, t in enumerate(tensors)]
    return torch.stack(picked)


def _similarity(
    rewritten: Rewritten, matching: Matching, source: str, rows: np.ndarray
) -> FloatArray:
    """Similarity of the merged channels at some places of a source's axis."""
    layout = rewritten.layout
    classes = layout.axes.get(Axis(f"{source}.running_mean", 0))
    if classes is None:
        return np.ones(len(rows))
    own = classes[rows]
    result = np.ones(len(rows))
    for group, similarity in matching.similarity.items():
        here = layout.group[own] == group
        result[here] = similarity[layout.channel[own[here]]]
    return np.clip(result, 0.0, 1.0)
