"""What stands between a layer and what is read of it: an activation, a sum with another value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, fx

from pleas_fx.algebra.links import Link
from pleas_fx.module_tree import execute
from pleas_fx.rules.activations import slope_of

SUMS = ("add", "add_", "iadd")


@dataclass(frozen=True, slots=True)
class Behind:
    """An activation that is all there is behind a layer, or behind a sum with its output."""

    link: Link
    sum: fx.Node | None  # None: it reads the layer itself
    other: fx.Node | None  # what is added to the layer's output


def behind(module: fx.GraphModule, node: fx.Node) -> Behind | None:
    """What reads a layer's output; None where anything else does."""
    link = _activated(module, node)
    if link is not None:
        return Behind(link, None, None)
    users = list(node.users)
    if len(users) != 1 or _name(module, users[0]) not in SUMS:
        return None
    others = [n for n in users[0].all_input_nodes if n is not node]
    if len(others) != 1 or len(users[0].args) != 2 or users[0].kwargs:
        return None
    link = _activated(module, users[0])
    return None if link is None else Behind(link, users[0], others[0])


def _activated(module: fx.GraphModule, node: fx.Node) -> Link | None:
    """The activation that all users of a node are."""
    found: dict[tuple[object, ...], fx.Node] = {}
    for user in node.users:
        if slope_of(_name(module, user)) is None or user.all_input_nodes != [node]:
            return None
        found[user.op, user.target, str(user.args[1:]), str(user.kwargs)] = user
    if len(found) != 1:
        return None
    (user,) = found.values()
    slope = slope_of(_name(module, user))
    assert slope is not None
    passed = partial(_passed, module, user)
    return Link(passed, slope) if _by_number(passed) else None


def _by_number(passed: Callable[[Tensor], Tensor]) -> bool:
    """Whether every number counts by itself: somebody's own operator may have a known name."""
    some = torch.linspace(-3, 3, 6).reshape(2, 3)
    try:
        found, each = passed(some), passed(some.reshape(6, 1))
        return found.shape == some.shape and torch.allclose(found.reshape(6, 1), each)
    except Exception:  # noqa: BLE001 (it takes other shapes only)
        return False


def _passed(module: fx.GraphModule, user: fx.Node, values: Tensor) -> Tensor:
    """Activations may write to what they are given."""
    given = values.clone()
    args, kwargs = fx.node.map_arg((user.args, user.kwargs), lambda _: given)
    with torch.inference_mode():
        found: Tensor = execute(module, user.op, user.target, args, kwargs)
    return found


def _name(module: fx.GraphModule, node: fx.Node) -> str:
    """Of the module's class, the function or the method."""
    if node.op == "call_module":
        return type(module.get_submodule(str(node.target))).__name__
    name = str(getattr(node.target, "__name__", node.target))
    return name.split(".")[0]
