"""Who may import whom: three floors, no circles, and a package that is cheap to import."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import networkx as nx
import pytest

import pleas_fx

ROOT = Path(__file__).parent.parent
PACKAGES = ("pleas_fx", "passes")

# What passes may use: values, tables and mathematics. Nothing that knows files or the screen.
CORE = {
    "pleas_fx.blocks",
    "pleas_fx.classes",
    "pleas_fx.costs",
    "pleas_fx.errors",
    "pleas_fx.explicit",
    "pleas_fx.extract",
    "pleas_fx.ir",
    "pleas_fx.labels",
    "pleas_fx.lanes",
    "pleas_fx.modes",
    "pleas_fx.module_tree",
    "pleas_fx.options",
    "pleas_fx.permuting",
    "pleas_fx.recall",
    "pleas_fx.shortage",
    "pleas_fx.unfold",
}
CORE_PACKAGES = ("pleas_fx.algebra", "pleas_fx.rules")
# Passes with files: the exporter, whose result is one, and activations that memory can't hold.
WRITERS = {"passes.export", "passes._parity", "passes._lockstep"}


@cache
def sources() -> dict[str, ast.Module]:
    """The syntax tree of every module, by its dotted name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def is_core(name: str) -> bool:
    """Whether passes may import a module of pleas_fx."""
    return name in CORE or name.startswith(CORE_PACKAGES)


def imported(node: ast.AST) -> list[str]:
    """The modules that an import statement names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        submodules = [f"{node.module}.{alias.name}" for alias in node.names]
        known = [name for name in submodules if name in sources()]
        others = len(known) < len(submodules) or node.module not in sources()
        return known + [node.module] * others
    return []


def for_types_only(node: ast.AST) -> bool:
    """Whether a block runs for type checkers only."""
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def imports(tree: ast.AST, *, inside_functions: bool) -> Iterator[str]:
    """Modules imported at run time; those imported when a function is called, on request."""
    for node in ast.iter_child_nodes(tree):
        function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if for_types_only(node) or (function and not inside_functions):
            continue
        yield from imported(node)
        yield from imports(node, inside_functions=inside_functions)


def graph(trees: dict[str, ast.Module]) -> nx.DiGraph:
    """An edge from every module to those it imports when it is itself imported."""
    found = nx.DiGraph()
    for name, tree in trees.items():
        targets = imports(tree, inside_functions=False)
        found.add_edges_from((name, t) for t in targets if t.startswith(PACKAGES))
    return found


def all_imports(name: str) -> set[str]:
    """Everything that a module imports, at any time."""
    return set(imports(sources()[name], inside_functions=True))


# -- floors ---------------------------------------------------------------------------------


def test_passes_import_only_the_core() -> None:
    """From pleas_fx, values, tables and mathematics; not the driver, files or the screen."""
    for name in sources():
        if name.startswith("passes"):
            upwards = {m for m in all_imports(name) if m.startswith("pleas_fx")}
            assert {m for m in upwards if not is_core(m)} == set(), name


def test_the_allow_list_is_needed_and_excludes_the_upper_floor() -> None:
    """Negative control: names on it exist and are used; driver, files and screen aren't on it."""
    used = set().union(*(all_imports(n) for n in sources() if n.startswith("passes")))
    assert used >= CORE
    upper = "api cli artefact report demo compiler commands sources calibration budget".split()
    assert not [name for name in upper if is_core(f"pleas_fx.{name}")]
    assert {"pleas_fx.api", "pleas_fx.compiler", "pleas_fx.cli"} <= sources().keys()


def test_the_core_imports_no_pass() -> None:
    """The lowest floor knows nothing above it."""
    for name in filter(is_core, sources()):
        above = {m for m in all_imports(name) if m.startswith(PACKAGES) and not is_core(m)}
        assert above == set(), name
    assert any(m.startswith("passes") for m in all_imports("pleas_fx.compiler"))  # the control


def test_the_algebra_knows_no_network() -> None:
    """No graph, no module, no layer: tensors, arrays, and the array types of ir."""
    for name in sources():
        if name.startswith("pleas_fx.algebra"):
            found = all_imports(name)
            assert not any(m.startswith(("torch.fx", "torch.nn", "torchvision")) for m in found)
            ours = {m for m in found if m.startswith(PACKAGES)}
            assert {m for m in ours if not m.startswith("pleas_fx.algebra")} <= {"pleas_fx.ir"}
            fetched = _names_from(sources()[name], "torch") | _names_from(
                sources()[name], "pleas_fx.ir"
            )
            assert fetched <= {"Tensor", "FloatArray", "IntArray"}
    assert {"fx", "nn"} <= _names_from(sources()["passes.trace"], "torch")  # the control


def _names_from(tree: ast.Module, module: str) -> set[str]:
    found = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module == module]
    return {alias.name for node in found for alias in node.names}


FILES = ("pathlib", "tempfile", "shutil", "safetensors", "json", "yaml")
SCREEN = ("typer", "rich", "jinja2", "matplotlib")


def test_passes_know_no_file_and_no_screen() -> None:
    """Except for the exporter, and for activations spilled to disk."""
    for name in sources():
        if name.startswith("passes"):
            found = all_imports(name)
            assert not any(m.startswith(SCREEN) for m in found), name
            assert name in WRITERS or not any(m.startswith(FILES) for m in found), name
    assert any(m.startswith(FILES) for m in all_imports("passes.export"))  # the control


def test_only_test_code_is_imported_by_tests() -> None:
    """Nothing that is shipped imports the tests."""
    assert not [n for n in sources() if any(m.startswith("tests") for m in all_imports(n))]


# -- circles --------------------------------------------------------------------------------


def test_imports_form_no_circle() -> None:
    """Every module is complete before anything that imports it."""
    found = graph(sources())
    assert len(found) > 40
    assert list(nx.simple_cycles(found)) == []


def test_a_circle_would_be_found() -> None:
    """Negative control: also one through a package, and one inside a class."""
    text = {
        "pleas_fx.ir": "from pleas_fx.labels import Call",
        "pleas_fx.labels": "class A:\n    from passes import groups",
        "passes.groups": "import pleas_fx.ir",
    }
    trees = {name: ast.parse(source) for name, source in text.items()}
    assert len(list(nx.simple_cycles(graph(trees)))) == 1
    trees["passes.groups"] = ast.parse("def f():\n    import pleas_fx.ir")
    assert list(nx.simple_cycles(graph(trees))) == []


# -- importing ------------------------------------------------------------------------------

IMPORT_EACH_FIRST = """
import importlib, sys
for name in sys.argv[1:]:
    for loaded in [m for m in sys.modules if m.split(".")[0] in ("pleas_fx", "passes")]:
        del sys.modules[loaded]
    try:
        importlib.import_module(name)
    except Exception as error:
        print(f"{name}: {type(error).__name__}: {error}")
"""


def run(code: str, *arguments: str, path: Path = ROOT) -> str:
    """What a fresh interpreter prints."""
    environment = {**os.environ, "PYTHONPATH": str(path), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    return (result.stdout + result.stderr[-2000:]).strip()


def test_every_module_can_be_imported_first() -> None:
    """No module relies on another having been imported before it."""
    assert run(IMPORT_EACH_FIRST, *sources()) == ""


def test_a_module_that_cannot_be_imported_is_noticed(tmp_path: Path) -> None:
    """Negative control: the loop reports what fails."""
    (tmp_path / "half.py").write_text("import pleas_fx.nowhere", encoding="utf-8")
    code = f"import sys; sys.path.append({str(tmp_path)!r})" + IMPORT_EACH_FIRST
    assert run(code, "half").startswith("half: ModuleNotFoundError")


def test_importing_the_package_is_cheap() -> None:
    """Neither torch nor numpy is loaded before something is asked for."""
    heavy = "[m for m in ('torch', 'numpy', 'onnx', 'passes') if m in sys.modules]"
    assert run(f"import sys, pleas_fx; dir(pleas_fx); print({heavy})") == "[]"
    code = f"import sys, pleas_fx; pleas_fx.PleasError; print({heavy})"
    assert run(code) == "[]"
    loaded = run(f"import sys, pleas_fx; pleas_fx.permutation_groups; print({heavy})")
    assert "torch" in loaded  # the control


def test_the_public_names_are_exported_lazily() -> None:
    """Every name of ``__all__`` is found, listed, documented, and known to type checkers."""
    assert sorted(pleas_fx.__all__) == pleas_fx.__all__
    for name in pleas_fx.__all__:
        assert getattr(pleas_fx, name).__doc__, name
        assert name in dir(pleas_fx)
    block = next(node for node in sources()["pleas_fx"].body if for_types_only(node))
    typed = {a.name for n in ast.walk(block) if isinstance(n, ast.ImportFrom) for a in n.names}
    assert typed == set(pleas_fx.__all__) == set(pleas_fx._HOMES)


def test_unknown_names_are_attribute_errors() -> None:
    """Asking for anything else says what is missing."""
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = pleas_fx.nonsense


def test_every_module_says_what_it_is() -> None:
    """A docstring first, postponed annotations where there is code."""
    for name, tree in sources().items():
        assert ast.get_docstring(tree), name
        has_code = any(isinstance(n, ast.FunctionDef | ast.ClassDef) for n in tree.body)
        future = any(isinstance(n, ast.ImportFrom) and n.module == "__future__" for n in tree.body)
        assert future or not has_code, name


def test_a_foreign_passes_package_is_named(tmp_path: Path) -> None:
    """Where another ``passes`` hides ours, the error says which file does."""
    (tmp_path / "passes.py").write_text("", encoding="utf-8")
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}]\nimport pleas_fx; pleas_fx.merge"
    printed = run(code)
    assert "Error" in printed
    assert str(tmp_path / "passes.py") in printed
