"""What the commands need to know of an artefact folder besides its network."""

from __future__ import annotations

from pathlib import Path

from pleas_fx.commands.recipe import Recipe, read
from pleas_fx.errors import PleasError

RECIPE, ONNX = "recipe.yaml", "merged.onnx"


def saved_recipe(folder: Path) -> Recipe:
    """The recipe in an artefact folder; an empty one when there is none that can be read."""
    try:
        return read(folder / RECIPE)
    except PleasError:
        return Recipe()
