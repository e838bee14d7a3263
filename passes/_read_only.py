"""Run a model's code on its own parameters, but not let it write to them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pleas_fx.modes import DispatchMode


class WriteError(Exception):
    """An operator would have changed a parameter."""


class ReadOnly(DispatchMode):
    """Operators that write into what is kept fail before they do; ``written`` says so later on."""

    def __init__(self, kept: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kept = {_storage(tensor) for tensor in kept}
        self.written = False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func._schema.is_mutable and self.kept & set(_written(func, args, kwargs)):
            self.written = True
            raise WriteError(f"{func} writes into a parameter")
        return func(*args, **kwargs)


def _written(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[int]:
    """The storages that an operator writes into."""
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = args[place] if place < len(args) else kwargs.get(argument.name)
            yield from (_storage(t) for t in tree_leaves(given) if isinstance(t, Tensor))


def _storage(tensor: Tensor) -> int:
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError, ValueError):  # sparse, or not there yet
        return 0


@contextmanager
def read_only(model: nn.Module) -> Iterator[ReadOnly]:
    """Inside, nothing changes the parameters of ``model``; what replaces their data is undone."""
    parameters = list(model.parameters())
    data = [p.data for p in parameters]
    guard = ReadOnly(data)
    try:
        with guard:
            yield guard
    finally:
        for parameter, own in zip(parameters, data, strict=True):
            if _storage(parameter) != _storage(own):
                parameter.data = own
                guard.written = True
