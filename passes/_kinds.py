"""While a model's code runs on proxies, its ``isinstance`` asks what they stand for.

The name is put into the namespaces of the files that the modules' code is in, as torch.fx does
with functions that it wraps. Telling Python itself that a proxy is a tensor would reach operators
that read its memory as a tensor's.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import fx, nn


@contextmanager
def kinds_of_values(model: nn.Module, value: Callable[[fx.Proxy], Any]) -> Iterator[None]:
    """``value``: what a proxy stands for on the example inputs."""

    def asked(instead_of: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
        def answer(thing: Any, kinds: Any) -> bool:
            found = instead_of(thing, kinds)
            return found or (isinstance(thing, fx.Proxy) and instead_of(value(thing), kinds))

        return answer

    with ExitStack() as stack:
        for namespace in _namespaces(model):
            stack.callback(namespace.pop, "isinstance")
            namespace["isinstance"] = asked(isinstance)
        stack.callback(setattr, torch.jit, "isinstance", torch.jit.isinstance)
        torch.jit.isinstance = asked(torch.jit.isinstance)
        yield


def _namespaces(model: nn.Module) -> Iterator[dict[str, Any]]:
    """Of the files that hold the code of modules, without torch's own."""
    found = {}
    for kind in {type(module) for module in model.modules()}:
        namespace = getattr(inspect.unwrap(kind.forward), "__globals__", {})
        home = str(namespace.get("__name__", "torch")).partition(".")[0]
        if home != "torch" and "isinstance" not in namespace:
            found[id(namespace)] = namespace
    yield from found.values()
