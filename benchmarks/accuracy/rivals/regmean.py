"""RegMean (Jin et al. 2023): W = (Σ Gₖ)⁻¹ Σ Gₖ Wₖ, Gₖ the Gram matrix of source k's inputs.

No permutation. Convolutions through their unfold. Gram matrices are of the source on its own
images where owners are known; off-diagonals are shrunk by ``ALPHA`` as in the paper. Everything
else is averaged, statistics are recomputed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.accuracy.rivals.aligned import Aligned, Request, align
from benchmarks.accuracy.rivals.layers import fitted_sites, recorded
from passes.recalibrate import recalibrate
from passes.rewrite import Site
from pleas_fx.extract import positions
from pleas_fx.ir import IntArray
from pleas_fx.unfold import from_matrix, input_rows, output_positions, to_matrix

ALPHA = 0.9
ROWS = 512  # of a batch


def regmean(request: Request, alpha: float = ALPHA) -> nn.Module:
    """The regression mean of all convolutions and linear layers."""
    aligned = align(request, "")
    sites = fitted_sites(aligned)
    grams = [_grams(aligned, source, sites) for source in range(len(aligned.models))]
    for site, module in sites:
        own = [g[site.source] for g in grams]
        _write(aligned, site, module, [shrunk(g, alpha) for g in own])
    recalibrate(aligned.rewritten.module, aligned.data.batches)
    return aligned.rewritten.module


def _grams(
    aligned: Aligned, source: int, sites: Sequence[tuple[Site, nn.Module]]
) -> dict[str, Tensor]:
    """(groups, unknowns + 1, unknowns + 1) a layer; the last one stands for the bias."""
    model = aligned.programs[source].module
    sums: dict[str, Tensor] = {}
    names = {site.source for site, _ in sites}
    with recorded(model, names) as seen:
        for k, batch in enumerate(aligned.data.batches):
            if aligned.data.owners[k] not in (None, source):
                continue
            model(*batch)
            for name, (x, y) in seen.items():
                layer = model.get_submodule(name)
                at = positions(np.random.default_rng((k, len(name))), _count(layer, y), ROWS)
                z = input_rows(layer, x, y.shape, at).transpose(0, 1).double()
                z = torch.cat([z, torch.ones_like(z[..., :1])], -1)
                sums[name] = sums.get(name, torch.zeros(())) + z.mT @ z
    return sums


def _count(layer: nn.Module, y: Tensor) -> int:
    return output_positions(layer, y.shape)


def shrunk(gram: Tensor, alpha: float) -> Tensor:
    """Off-diagonals times ``alpha``; those of the constant stay."""
    result = gram * alpha
    result.diagonal(dim1=-2, dim2=-1).copy_(gram.diagonal(dim1=-2, dim2=-1))
    result[..., -1, :], result[..., :, -1] = gram[..., -1, :], gram[..., :, -1]
    return result


def regression_mean(grams: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """(Σ Gₖ)⁻¹ Σ Gₖ Wₖ for weights (…, outputs, unknowns)."""
    total = torch.stack(list(grams)).sum(0)
    right = torch.stack([g @ w.mT for g, w in zip(grams, weights, strict=True)]).sum(0)
    level = total.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    damped = total + 1e-8 * level * torch.eye(total.shape[-1], dtype=total.dtype)
    solved: Tensor = torch.linalg.solve(damped, right)
    return solved.mT


def _write(aligned: Aligned, site: Site, module: nn.Module, grams: Sequence[Tensor]) -> None:
    """Outputs with the same members are solved together."""
    like = module.get_parameter("weight")
    groups = grams[0].shape[0]
    result = torch.zeros(groups, len(site.rows) // groups, grams[0].shape[-1], dtype=torch.float64)
    present = site.rows >= 0
    for pattern in np.unique(present, axis=0):
        chosen = np.flatnonzero((present == pattern).all(1))
        owners = np.flatnonzero(pattern).tolist()
        weights = [_own(aligned, site, s, chosen, groups) for s in owners]
        solved = regression_mean([grams[s] for s in owners], weights)
        if groups == 1:
            result[0, chosen] = solved[0]
        else:
            result[:] = solved
    with torch.no_grad():
        like.copy_(from_matrix(module, result[..., :-1], like))
        if module.bias is not None:
            module.get_parameter("bias").copy_(result[..., -1].reshape(-1))


def _own(aligned: Aligned, site: Site, source: int, chosen: IntArray, groups: int) -> Tensor:
    """(groups, outputs, unknowns + 1): a source's weight and bias at some outputs."""
    layer = aligned.programs[source].module.get_submodule(site.source)
    matrix = to_matrix(layer, layer.get_parameter("weight").detach()).double()
    bias = torch.zeros(matrix.shape[:2], dtype=torch.float64)
    if layer.bias is not None:
        bias = layer.get_parameter("bias").detach().double().view(bias.shape)
    matrix = torch.cat([matrix, bias.unsqueeze(-1)], -1)
    return matrix if groups > 1 else matrix[:, torch.from_numpy(site.rows[chosen, source])]
