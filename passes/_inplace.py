"""Operators that write in place, replaced by ordinary ones."""

from __future__ import annotations

import operator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx

FUNCTIONS: dict[Any, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}
FILLING: dict[str, Any] = {"zero_": torch.zeros_like, "fill_": torch.full_like}


def without_writes(module: fx.GraphModule) -> None:
    """Replace in-place operators, in place; what read the old value afterwards reads the new one.

    A write to a slice is one to what it is a slice of. Other views aren't followed: a comparison
    with the model tells.
    """
    for node in list(module.graph.nodes):
        old = node.args[0] if node.args else None
        if _make_functional(module, node) and isinstance(old, fx.Node):
            _written(old, node)


def _written(old: fx.Node, new: fx.Node) -> fx.Node:
    """``new`` holds what ``old`` held, from there on; the node that stands for it."""
    later = [user for user in old.users if user is not new and new < user]
    base = _sliced(old)
    if base is not None and _read_after(base, new):
        keys = cast(Any, old.args[1] if isinstance(old.args[1], tuple) else (old.args[1],))
        with old.graph.inserting_before(new.next):
            whole = _written(base, _replaced(base, list(enumerate(keys)), new))
        with old.graph.inserting_before(whole.next):  # a slice of it again: there may be more
            new = old.graph.call_function(operator.getitem, (whole, old.args[1]))
    for user in later:
        user.replace_input_with(old, new)
    return new


def _sliced(node: fx.Node) -> fx.Node | None:
    """What ``node`` is a slice of; None where it isn't one."""
    if node.target is operator.getitem and sliceable(node.args[1]):
        return node.args[0] if isinstance(node.args[0], fx.Node) else None
    return None


def _read_after(node: fx.Node, write: fx.Node) -> bool:
    """Whether the tensor that ``node`` holds a part of, or all of, is read behind a write."""
    base = _sliced(node)
    if any(write < user for user in node.users):
        return True
    return base is not None and _read_after(base, write)


def sliceable(key: Any) -> bool:
    """Whether an index takes a slice of a tensor."""
    keys = key if isinstance(key, tuple) else (key,)
    return all(isinstance(k, slice) for k in keys) and len(keys) > 0


def _replaced(base: fx.Node, keys: list[tuple[int, slice]], part: fx.Node) -> fx.Node:
    """``base`` with ``part`` in the place of ``base[keys]``; the dims given, all others whole."""
    if not keys:
        return part
    (dim, key), *others = keys
    graph, stepping = base.graph, key.step not in (None, 1)
    if key.start is None and key.stop is None and not stepping:
        return _replaced(base, others, part)

    def piece(start: Any, stop: Any, step: Any = None) -> fx.Node:
        index = (*[slice(None)] * dim, slice(start, stop, step))
        return graph.call_function(operator.getitem, (base, index))

    if stepping:
        inner = piece(key.start, key.stop, key.step)
        source = _replaced(inner, others, part) if others else part
        where = (dim, key.start, key.stop, key.step)
        return graph.call_function(torch.slice_scatter, (base, source, *where))
    pieces = [_replaced(piece(key.start, key.stop), others, part) if others else part]
    if key.start is not None:
        pieces.insert(0, piece(None, key.start))
    if key.stop is not None:
        pieces.append(piece(key.stop, None))
    return graph.call_function(torch.cat, (pieces, dim))


def _make_functional(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether ``node`` was in-place; it no longer is."""
    if node.op == "call_module":
        return _calm_module(module, node)
    if node.op == "call_function":
        return _calm_function(node)
    return node.op == "call_method" and _calm_method(node)


def _calm_module(module: fx.GraphModule, node: fx.Node) -> bool:
    target = module.get_submodule(str(node.target))
    if getattr(target, "inplace", False):
        target.inplace = False  # type: ignore[assignment]
        node.meta["inplace"] = True
        module.meta.setdefault("inplace", set()).add(str(node.target))
    return str(node.target) in module.meta.get("inplace", ())


def _calm_function(node: fx.Node) -> bool:
    if node.target in FUNCTIONS:
        node.target = FUNCTIONS[node.target]
        return True
    if node.kwargs.get("inplace"):
        node.kwargs = {**node.kwargs, "inplace": False}
        return True
    ordinary = _ordinary(node.target)
    if ordinary is not None:
        node.target = ordinary
    return ordinary is not None


def _calm_method(node: fx.Node) -> bool:
    name = str(node.target)
    if name in FILLING and not node.kwargs:
        node.op, node.target = "call_function", FILLING[name]
        return True
    if name == "copy_" and len(node.args) > 1:
        into, value = node.args[:2]
        with node.graph.inserting_before(node):
            wide = node.graph.call_method("expand_as", (value, into))
        node.target, node.args, node.kwargs = "to", (wide, into), {}
        return True
    if not name.endswith("_") or name.startswith("_") or not hasattr(Tensor, name[:-1]):
        return False
    node.target = name[:-1]
    return True


def _ordinary(function: Any) -> Any:
    """``torch.clamp`` for ``torch.clamp_`` and its like; None for a function of another kind."""
    name = getattr(function, "__name__", "")
    if not name.endswith("_") or name.startswith("_"):
        return None
    for home in (torch, F):
        if getattr(home, name, None) is function:
            return getattr(home, name[:-1], None)
    return None
