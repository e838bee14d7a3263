"""What a merge returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, fx

from pleas_fx.ir import Plan, Report, Symmetry

RecipeValue = str | float | int | bool | None | list["RecipeValue"] | dict[str, "RecipeValue"]


@dataclass(frozen=True, slots=True, repr=False)
class MergeResult:
    """One merged network and the evidence that comes with it."""

    model: fx.GraphModule
    plan: Plan
    report: Report
    symmetry: Symmetry
    inputs: tuple[Tensor, ...]  # example inputs, batch first
    output_names: tuple[str, ...]  # one per output tensor of ``model``, in order
    recipe: Mapping[str, RecipeValue]  # what reproduces the run: sources, calibration, options

    def save(self, folder: str | Path) -> Path:
        """Write the artefact folder (CONTRACT: Artefact folder), whole or not at all."""
        from pleas_fx.artefact import save

        return save(self, Path(folder))

    def __repr__(self) -> str:
        merged, source = self.report.merged, self.report.sources[0]
        return (
            f"MergeResult({len(self.report.sources)} sources, "
            f"{merged.flops / max(source.flops, 1):.2f}x FLOPs, "
            f"{merged.params / max(source.params, 1):.2f}x parameters, "
            f"outputs {', '.join(self.output_names)})"
        )

    def __str__(self) -> str:
        notes = [self.plan.note] if self.plan.note else []
        return "\n".join([str(self.report), *notes, f"outputs: {', '.join(self.output_names)}"])
