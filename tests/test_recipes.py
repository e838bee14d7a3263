"""Recipes: everything in them is used, and what is saved reads back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pleas_fx.calibration import PerSource
from pleas_fx.commands.recipe import Recipe, read
from pleas_fx.errors import OptionError, PleasError
from tests import command_line
from tests.command_line import Call

run, here, merged = command_line.run, command_line.here, command_line.merged

RECIPE: dict[str, Any] = {
    "sources": ["nets.py:a", "nets.py:b"],
    "calibration": ["nets.py:data", "nets.py:data"],
    "normalise": {"mean": [0.1], "std": [0.2]},
    "input": [1, 3, 8, 8],
    "flops": 1,
    "heads": "joint",
    "classes": [["x", "y", "z"], ["z", "w"]],
    "method": "pleas",
    "seed": 3,
    "distil": 4,
    "out": "from_recipe",
}


def written(path: Path, **changes: Any) -> Path:
    """The recipe, changed, as a file."""
    path.write_text(yaml.safe_dump({**RECIPE, **changes}))
    return path


class TestRecipes:
    """``merge recipe.yaml``."""

    def test_everything_in_it_is_used(
        self, run: Callable[..., Call], here: Path, merged: list[dict[str, Any]]
    ) -> None:
        """All keys of the schema reach the library."""
        call = run("merge", written(here / "r.yaml"))
        assert call.status == 0, call.err
        (given,) = merged
        assert isinstance(given["calibration"], PerSource)
        assert given["classes"] == (("x", "y", "z"), ("z", "w"))
        assert (given["flops"], given["heads"], given["seed"]) == (1.0, "joint", 3)
        assert given["distil"] == 4
        assert given["recipe"]["normalise"] == {"mean": [0.1], "std": [0.2]}
        assert (here / "from_recipe").is_dir()

    def test_the_command_line_wins(
        self, run: Callable[..., Call], here: Path, merged: list[dict[str, Any]]
    ) -> None:
        """A budget there replaces the other budget of the recipe."""
        run("merge", written(here / "r.yaml"), "--width", "0.5", "--seed", "9", "--distil", "7")
        assert merged[0]["width"] == 0.5
        assert "flops" not in merged[0]
        assert (merged[0]["seed"], merged[0]["distil"]) == (9, 7)

    def test_a_plan_is_that_of_the_merge(
        self, run: Callable[..., Call], here: Path, merged: list[dict[str, Any]]
    ) -> None:
        """What comes after the plan is left out."""
        assert run("plan", written(here / "r.yaml")).status == 0
        assert run("merge", written(here / "r.yaml")).status == 0
        assert merged[0].keys() | {"progress", "recipe", "distil"} == merged[1].keys()

    def test_files_beside_the_recipe_are_found(
        self, here: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """From another folder; files of that folder come first."""
        path = written(here / "r.yaml", calibration="w.npz:key")
        (here / "w.npz").touch()
        elsewhere = tmp_path_factory.mktemp("elsewhere")
        monkeypatch.chdir(elsewhere)
        assert read(path).sources[0] == f"{here / 'nets.py'}:a"
        assert read(path).calibration == f"{here / 'w.npz'}:key"
        (elsewhere / "nets.py").touch()
        assert read(path).sources[0] == "nets.py:a"

    def test_what_is_recorded_reads_back(self, here: Path) -> None:
        """origin() and options() are the recipe again."""
        recipe = read(written(here / "r.yaml", widths={"0": 0.5, 1: 2}, flops=None, samples=5))
        recorded = {**recipe.options(), **recipe.origin()}
        recorded["classes"] = [list(own) for own in recorded["classes"]]
        (here / "again.yaml").write_text(yaml.safe_dump(recorded))
        again = read(here / "again.yaml")
        assert again.updated(Recipe(out=recipe.out)) == recipe
        assert again.widths == {0: 0.5, 1: 2.0}

    @pytest.mark.parametrize(
        ("changes", "word"),
        [
            ({"flop": 1}, "unknown key 'flop'"),
            ({"flops": "much"}, "flops: expected a number, not 'much'"),
            ({"flops": True}, "flops: expected a number"),
            ({"seed": 1.5}, "seed: expected a whole number"),
            ({"sources": "a"}, "sources: expected a list"),
            ({"sources": [1, 2]}, "sources: expected text"),
            ({"normalise": {"average": 1}}, "normalise: expected mean and std"),
            ({"classes": ["x"]}, "classes of source 0: expected a list"),
            ({"widths": [1]}, "widths: expected a width for each group"),
            ({"widths": {"a": 1}}, "groups are numbers"),
            ({"input": "1,3"}, "input: expected a list"),
            ({"heads": 1}, "heads: expected text"),
        ],
    )
    def test_mistakes_name_file_and_key(
        self, here: Path, changes: dict[str, Any], word: str
    ) -> None:
        """Types are checked before anything is loaded."""
        with pytest.raises(OptionError) as caught:
            read(written(here / "r.yaml", **changes))
        assert "r.yaml" in str(caught.value)
        assert word in str(caught.value)

    @pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2", "", "1: 2", "!!python/name:os.system"])
    def test_other_yaml(self, here: Path, text: str) -> None:
        """Broken, of another kind, empty, or asking for Python objects."""
        (here / "r.yaml").write_text(text)
        with pytest.raises(PleasError, match=r"r\.yaml"):
            read(here / "r.yaml")
