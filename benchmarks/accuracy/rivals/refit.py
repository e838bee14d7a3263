"""All channels merged, then the product's own fit: shows what the planner adds."""

from __future__ import annotations

from torch import nn

from benchmarks.accuracy.rivals.aligned import Request, align
from passes._answers import answering
from passes._rows import Settings
from passes.fit import fit
from pleas_fx.heads import head_nodes, output_groups


def merged_refit(request: Request) -> nn.Module:
    """Matched on activations, everything merged, sequential least squares."""
    aligned = align(request, "activations")
    program, symmetry = aligned.programs[0], aligned.symmetries[0]
    heads = head_nodes(program, symmetry, output_groups(program, symmetry))
    settings = Settings(
        1e-4, 8, request.seed, aligned.data.owners, heads, answering(program, heads)
    )
    fit(aligned.programs, aligned.rewritten, aligned.data.batches, settings)
    return aligned.rewritten.module
