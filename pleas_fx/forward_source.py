"""The forward method of a graph, as a person would write it.

torch.fx writes one variable a node. Here a name is taken over as soon as its value isn't needed
any more, so that running the source holds no more activations than running the graph, and the
values of a lane are named after it: ``a``, ``b``, ``ab``.
"""

from __future__ import annotations

import ast
import keyword
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import fx

from pleas_fx.allowed import function_name
from pleas_fx.errors import ArtefactError

LANE = re.compile(r"_([A-Z]{1,6})(_call\d+)?$")  # what the names of a lane's layers end in
INDENT = "        "
STEP = "    "
WIDTH = 100


def forward_source(graph: fx.Graph, access: Callable[[str], str]) -> tuple[str, tuple[str, ...]]:
    """The method and the imports it needs; ``access`` writes the path of a submodule or tensor.

    Raises:
        ArtefactError: a function of the graph has no name in source.
    """
    plain = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        copies[node] = plain.node_copy(node, lambda n: copies[n])
        copies[node].type = None  # annotations would need imports
    code = plain.python_code("self")
    method = ast.parse(code.src.strip()).body[0]
    assert isinstance(method, ast.FunctionDef)
    lanes = {n.name: found[1].lower() for n in plain.nodes if (found := LANE.search(str(n.target)))}
    names = _Names(method, lanes, code.globals)
    reader = _Reader(access, _public_names(plain))
    statements = [names.put_in(reader.visit(s), dead) for s, dead in _statements(method)]
    lines = [INDENT + _written(s) for s in statements if not _does_nothing(s)]
    source = "\n".join([f"    def forward({ast.unparse(method.args)}):", *lines, ""])
    used = {n.id for s in statements for n in ast.walk(s) if isinstance(n, ast.Name)}
    imports = {_import(name, value) for name, value in code.globals.items() if name in used}
    return source, tuple(sorted(imports - {""}))


def _statements(method: ast.FunctionDef) -> Iterator[tuple[ast.stmt, list[str]]]:
    """Every statement, and the names whose values aren't needed after it."""
    kept: list[tuple[ast.stmt, list[str]]] = []
    for statement in method.body:
        dead = _dies(statement)
        if dead and kept:
            kept[-1][1].extend(dead)
        elif not dead:
            kept.append((statement, []))
    yield from kept


def _dies(statement: ast.stmt) -> list[str]:
    """The names in ``a = b = None``, which torch.fx writes after the last use of a value."""
    match statement:
        case ast.Assign(targets=targets, value=ast.Constant(value=None)):
            return [target.id for target in targets if isinstance(target, ast.Name)]
    return []


def _does_nothing(statement: ast.stmt) -> bool:
    """Whether a statement is ``a = a``."""
    match statement:
        case ast.Assign(targets=[ast.Name(id=name)], value=ast.Name(id=value)):
            return name == value
    return False


def _written(statement: ast.stmt) -> str:
    """The statement; a call that is too long for a line has its arguments on lines below."""
    line = _text(statement)
    match statement:
        case ast.Assign(targets=[target], value=ast.Call(func=function, args=args, keywords=named)):
            start, parts = f"{_text(target)} = {_text(function)}(", [*args, *named]
        case ast.Return(value=ast.Tuple(elts=parts)):
            start = "return ("
        case _:
            return line
    if len(INDENT + line) <= WIDTH:
        return line
    indent = INDENT + STEP
    words = [f"{_text(part)},".replace(" ", "\0") for part in parts]  # a part stays whole
    if max(map(len, words), default=0) > WIDTH - len(indent):
        rows = [row for part in parts for row in _nested(part, indent)]
    else:
        wrap = textwrap.TextWrapper(WIDTH, initial_indent=indent, subsequent_indent=indent)
        rows = wrap.wrap(" ".join(words))
    return "\n".join([start, *rows, f"{INDENT})"]).replace("\0", " ")


def _nested(node: ast.AST, indent: str, lead: str = "") -> list[str]:
    """A value on a line of its own, or its parts on lines of theirs."""
    line = f"{indent}{lead}{_text(node)},"
    parts: list[tuple[str, ast.AST]]
    match node:
        case ast.Tuple(elts=values):
            start, parts, end = "(", [("", value) for value in values], ")"
        case ast.List(elts=values):
            start, parts, end = "[", [("", value) for value in values], "]"
        case ast.Dict(keys=keys, values=values):
            named = zip(keys, values, strict=True)
            start, parts, end = "{", [(f"{_text(k)}: ", v) for k, v in named if k], "}"
        case _:
            return [line]
    if len(line) <= WIDTH:
        return [line]
    inner = [row for own, part in parts for row in _nested(part, indent + STEP, own)]
    return [f"{indent}{lead}{start}", *inner, f"{indent}{end},"]


def _text(node: ast.AST) -> str:
    """Source on one line, its strings in double quotes where that is plain."""
    line = ast.unparse(node)
    return line if '"' in line or "\\" in line else line.replace("'", '"')


class _Names(ast.NodeTransformer):
    """Which variable holds which value, while the statements go by."""

    def __init__(
        self, method: ast.FunctionDef, lanes: Mapping[str, str], reserved: Iterable[str]
    ) -> None:
        self.variables = {a.arg: a.arg for a in method.args.args if a.arg != "self"}
        self.lanes = {**dict.fromkeys(self.variables, "x"), **lanes}
        self.reserved = {"self", "nn", *reserved}

    def put_in(self, statement: ast.stmt, dead: Iterable[str]) -> ast.stmt:
        """The statement on variables; afterwards those of dead values are free."""
        result: ast.stmt
        if not isinstance(statement, ast.Assign):
            result = self.visit(statement)
            self._release(dead)
            return result
        target = statement.targets[0]
        assert isinstance(target, ast.Name)
        read = [n.id for n in ast.walk(statement.value) if isinstance(n, ast.Name)]
        lane = next((self.lanes[name] for name in read if name in self.variables), "x")
        self.lanes.setdefault(target.id, lane)
        value = self.visit(statement.value)
        self._release(dead)
        variable = self._free(self.lanes[target.id])
        self.variables[target.id] = variable
        result = ast.Assign(targets=[ast.Name(id=variable, ctx=ast.Store())], value=value)
        return ast.fix_missing_locations(result)

    def visit_Name(self, node: ast.Name) -> ast.Name:
        """A value under the name of its variable."""
        return ast.Name(id=self.variables.get(node.id, node.id), ctx=node.ctx)

    def _release(self, dead: Iterable[str]) -> None:
        for name in dead:
            self.variables.pop(name, None)

    def _free(self, lane: str) -> str:
        """``a``, or ``a1``, ``a2`` … while there are values in it."""
        taken = {*self.variables.values(), *self.reserved}
        base = f"{lane}_" if keyword.iskeyword(lane) else lane
        count = 0
        while (name := f"{base}{count or ''}") in taken:
            count += 1
        return name


class _Reader(ast.NodeTransformer):
    """What torch.fx writes in a roundabout way, in the words of a person."""

    def __init__(self, access: Callable[[str], str], public: Mapping[str, str]) -> None:
        self.access = access
        self.public = public

    def visit(self, node: ast.AST) -> Any:
        """Paths of the network and names of functions; the rest as it is."""
        path = _path(node)
        if path:
            return ast.parse(self.access(".".join(path)), mode="eval").body
        if isinstance(node, ast.Attribute):
            public = self.public.get(ast.unparse(node))
            if public is not None:
                return ast.parse(public, mode="eval").body
        return super().visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        """``x[:, 0]`` for ``x[(slice(None, None, None), 0)]``."""
        node.slice = _index(node.slice)
        return self.generic_visit(node)


def _path(node: ast.AST) -> list[str] | None:
    """The names in ``self.a.b`` and in ``getattr(getattr(self, "a"), "b")``."""
    match node:
        case ast.Name(id="self"):
            return []
        case ast.Attribute(value=owner, attr=name):
            before = _path(owner)
        case ast.Call(func=ast.Name(id="getattr"), args=[owner, ast.Constant(value=str(name))]):
            before = _path(owner)
        case _:
            return None
    return None if before is None else [*before, name]


def _index(node: ast.expr) -> ast.expr:
    match node:
        case ast.Tuple(elts=parts) if parts:
            return ast.Tuple(elts=[_index(part) for part in parts], ctx=ast.Load())
        case ast.Call(func=ast.Name(id="slice"), args=[start, stop, step]):
            bounds = [None if _is_none(bound) else bound for bound in (start, stop, step)]
            return ast.Slice(*bounds)
        case ast.Name(id="Ellipsis"):
            return ast.Constant(value=...)
    return node


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


# -- functions ------------------------------------------------------------------------------------


def _public_names(graph: fx.Graph) -> dict[str, str]:
    """What torch.fx calls the functions of a graph, and how they are known."""
    names = {}
    inputs = {node.target for node in graph.nodes if node.op == "placeholder"}
    for node in graph.nodes:
        if node.op == "call_function" and not _is_builtin(node.target):
            public = function_name(node.target)
            names[torch.fx.node._get_qualified_name(node.target)] = (
                public
                if "nn" in inputs
                else public.replace("torch.nn.functional.", "nn.functional.")
            )
    return names


def _is_builtin(function: Any) -> bool:
    return getattr(function, "__module__", "") in ("_operator", "builtins")


def _import(name: str, value: Any) -> str:
    if value is getattr or value is torch:
        return ""
    if isinstance(value, ModuleType):
        return f"import {value.__name__}" + (f" as {name}" if name != value.__name__ else "")
    if isinstance(value, float):
        return f"from math import {'nan' if math.isnan(value) else 'inf'}"
    if value is torch.device:
        return "from torch import device"
    public = function_name(value)
    if not public.startswith("operator."):
        raise ArtefactError(f"{public} has no name in source")
    return f"from operator import {public.removeprefix('operator.')} as {name}"
