"""What the commands need to know of an artefact folder besides its network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pleas_fx.commands.inputs import Shape
from pleas_fx.commands.recipe import Recipe, read
from pleas_fx.errors import ArtefactError, PleasError

RECIPE, ONNX = "recipe.yaml", "merged.onnx"


def saved_recipe(folder: Path) -> Recipe:
    """The recipe in an artefact folder, with the shapes that its network takes.

    What isn't there, or can't be read, is left empty: the network works without it.
    """
    try:
        recipe = read(folder / RECIPE)
    except PleasError:
        recipe = Recipe()
    if recipe.input or not (folder / ONNX).is_file():
        return recipe
    return replace(recipe, input=_onnx_shapes(folder / ONNX))


def check_free(folder: Path) -> None:
    """Refuse before hours of work, not after, a folder that a merge may not replace."""
    from pleas_fx.artefact import is_artefact

    if not folder.exists():
        return
    if not folder.is_dir():
        raise ArtefactError(f"{folder} is a file, not a folder")
    if any(folder.iterdir()) and not is_artefact(folder):
        raise ArtefactError(f"{folder} holds other files; give a new or empty folder as --out")


def _onnx_shapes(path: Path) -> tuple[Shape, ...]:
    """The shape of every input, batch 1; nothing when another size is open too."""
    import onnx

    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except Exception:  # noqa: BLE001 - protobuf raises whatever it likes at a damaged file
        return ()
    sizes = [[d.dim_value for d in i.type.tensor_type.shape.dim[1:]] for i in graph.input]
    return tuple((1, *row) for row in sizes) if all(map(all, sizes)) else ()
