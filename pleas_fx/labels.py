"""Channel labels, pushed through the operators a network really executes.

Every index of every parameter axis gets an integer label. A tensor carries *coordinates*: label
arrays of its own shape, one for every independent way in which its entries are indexed by
channels (stride 0 along the dims a coordinate doesn't depend on). Rules turn the coordinates of
an operator's inputs into those of its outputs, and record what must move together (ties), what
contains what (nests) and what may not move (pins).

Axes of size one carry no labels: there is nothing to permute on them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from pleas_fx.blocks import pairs
from pleas_fx.ir import Axis, IntArray
from pleas_fx.modes import DispatchMode

NONE = -1  # "the same constant everywhere": padding; tied to nothing

Coordinates = list[Tensor]


@dataclass(frozen=True, slots=True)
class Call:
    """One ATen call: its name without overload, arguments, and tensor results."""

    name: str
    func: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outs: tuple[Tensor, ...]

    def arg(self, index: int, name: str, default: Any = None) -> Any:
        """The argument at a position or under a keyword."""
        return self.args[index] if len(self.args) > index else self.kwargs.get(name, default)


@dataclass(frozen=True, slots=True)
class Pin:
    """Labels that may not move, who said so and why. ``kernel``: not a channel axis at all."""

    labels: Tensor
    node: str
    reason: str
    kernel: bool = False


Rule = Callable[["Labeller", Call], list[Coordinates]]
Execute = Callable[[Any, tuple[Any, ...], Mapping[str, Any]], Any]


def plainly(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What an operator gives."""
    return func(*args, **kwargs)


def compact(labels: Tensor) -> Tensor:
    """Drop the dims along which a coordinate does not vary to size one."""
    strides = labels.stride()
    if 0 not in strides:
        return labels
    sizes = [n if step else min(n, 1) for n, step in zip(labels.shape, strides, strict=True)]
    return labels.as_strided(sizes, strides)


def canonical(labels: Tensor) -> Tensor:
    """The same labels with stride 0 along every dim that does not vary."""
    small = compact(labels)
    varying = small.numpy()
    for dim in range(varying.ndim):
        if varying.shape[dim] > 1 and _same_along(varying, dim):
            varying = varying[(slice(None),) * dim + (slice(0, 1),)]
    if varying.shape != small.shape:
        small = small[tuple(slice(0, n) for n in varying.shape)]
    return small.expand(labels.shape)


def _same_along(labels: IntArray, dim: int) -> bool:
    """Whether all slices of a dim are equal; two corners tell most that aren't."""
    if not labels.size:
        return True
    first = labels[(slice(None),) * dim + (slice(0, 1),)]
    corner = (0,) * dim + (-1,) + (0,) * (labels.ndim - dim - 1)
    return bool(labels[corner] == first.item(0) and (labels == first).all())


def pattern(labels: Tensor) -> tuple[int, ...]:
    """The dims along which a canonical coordinate varies."""
    return tuple(d for d in range(labels.dim()) if labels.shape[d] > 1 and labels.stride(d) != 0)


def any_along(labels: Tensor, dim: int) -> Tensor:
    """One label a row of ``dim``, kept as size one; not NONE where there is another."""
    first = labels.narrow(dim, 0, 1)
    return labels.amax(dim, keepdim=True) if bool((first == NONE).any()) else first


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Those among an operator's arguments or results: by themselves, or in a list."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from (v for v in value if isinstance(v, Tensor))


class Labeller(DispatchMode):
    """Runs operators as usual and keeps the labels of every tensor beside them."""

    def __init__(
        self,
        rules: Mapping[str, Rule],
        known: Mapping[Axis, IntArray] | None = None,
        count: int = 0,
    ) -> None:
        """``known`` axes start with these labels, all of them below ``count``."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.rules = rules
        self.known = known or {}
        self.unlabelled: frozenset[Axis] = frozenset()
        self.grouped: Mapping[Axis, int] = {}  # axes with other labels in each group of rows
        self.regroup: dict[Axis, int] = {}  # axes that should have been: what was found out
        self.execute: Execute = plainly
        self.node = ""
        self.recurrent = False  # inside a recurrent layer
        self.count = count
        self.axes: dict[Axis, Tensor] = {}
        self.local: dict[Axis, Tensor] = {}  # block-local axes: labels per (row, index)
        self.ties: list[IntArray] = []
        self.nests: list[tuple[IntArray, IntArray]] = []  # (children, parents), flat and aligned
        self.pins: list[Pin] = []
        self.joined: list[Tensor] = []  # labels concatenated with entries that have none
        self.sites: list[Tensor] = []  # labels that went through a place, as equal channels do
        self.coupled: set[str] = set()
        self._coordinates: dict[int, Coordinates] = {}
        self._names: dict[int, list[str]] = {}
        self._data: set[int] = set()  # tensors that depend on inputs or parameters
        self._noted: dict[int, weakref.ref[Tensor]] = {}

    # -- what a tensor carries ---------------------------------------------------------------

    def fresh(self, n: int) -> Tensor:
        """``n`` labels that nothing carries yet."""
        self.count += n
        return torch.arange(self.count - n, self.count)

    def parameter(self, key: str, tensor: Tensor) -> None:
        """Give every axis of a parameter or buffer its labels."""
        names = self._names.setdefault(id(tensor), [])
        names.append(key)
        if len(names) > 1:  # tied parameters: the same labels under every name
            for found in (self.axes, self.local):
                own = [(a, labels) for a, labels in found.items() if a.key == names[0]]
                found.update((Axis(key, axis.dim), labels) for axis, labels in own)
            return
        coordinates = []
        for dim, size in enumerate(tensor.shape):
            if size == 1 or Axis(key, dim) in self.unlabelled:
                continue
            if Axis(key, dim) in self.grouped:
                groups, rows = self.grouped[Axis(key, dim)], tensor.shape[0]
                local = self.fresh(groups * size).view(groups, size)
                self.local[Axis(key, dim)] = local.repeat_interleave(rows // groups, 0)
                shape = [rows, size] + [1] * (tensor.dim() - 2)
                coordinates.append(self.local[Axis(key, dim)].view(shape).expand(tensor.shape))
                continue
            known = self.known.get(Axis(key, dim))
            labels = self.fresh(size) if known is None else torch.from_numpy(known)
            self.axes[Axis(key, dim)] = labels
            shape = [1] * tensor.dim()
            shape[dim] = size
            coordinates.append(labels.view(shape).expand(tensor.shape))
        self.assign(tensor, coordinates)
        self._data.add(id(tensor))

    def source(self, tensor: Tensor) -> None:
        """Declare a network input: it depends on data and carries no labels."""
        self._remember(tensor)
        self._data.add(id(tensor))

    def assign(self, tensor: Tensor, coordinates: Iterable[Tensor]) -> None:
        """Set the coordinates of a tensor."""
        self._keep(tensor, [canonical(c) for c in coordinates])

    def _keep(self, tensor: Tensor, settled: Coordinates) -> None:
        self._coordinates[id(tensor)] = [c for c in settled if pattern(c)]
        self._remember(tensor)

    def _remember(self, tensor: Tensor) -> None:
        """What is noted of a tensor by its identity lasts as long as the tensor."""
        key = id(tensor)
        if key not in self._noted:
            self._noted[key] = weakref.ref(tensor, lambda _: self._forget(key))

    def _forget(self, key: int) -> None:
        self._noted.pop(key, None)
        self._coordinates.pop(key, None)
        self._data.discard(key)

    def of(self, value: object) -> Coordinates:
        """The coordinates of a tensor; empty for anything that carries none."""
        return self._coordinates.get(id(value), [])

    def names_of(self, tensor: Tensor) -> list[str]:
        """The state_dict keys of a parameter, none for any other tensor."""
        return self._names.get(id(tensor), [])

    def depends_on_data(self, tensor: Tensor) -> bool:
        """Whether a tensor was computed from inputs or parameters."""
        return id(tensor) in self._data

    def independent(self, tensor: Tensor) -> None:
        """Declare a tensor a constant."""
        self._data.discard(id(tensor))

    # -- what rules record -------------------------------------------------------------------

    def tie(self, a: Tensor, b: Tensor) -> None:
        """Labels at equal positions of two arrays must move together."""
        one, two = compact(a).numpy(), compact(b).numpy()
        differ = (one != two) & (one != NONE) & (two != NONE)
        if differ.any():
            ends = (np.broadcast_to(end, differ.shape)[differ] for end in (one, two))
            self.ties.append(pairs(*ends))

    def nest(self, children: Tensor, parents: Tensor) -> bool:
        """Whole ``parents`` may be exchanged, each together with its ``children``.

        Whether the children tell where their parents are: none has two of them, or lacks.
        """
        inner, outer = compact(children).numpy(), compact(parents).numpy()
        both = (inner != NONE) & (outer != NONE)
        found = pairs(*(np.broadcast_to(end, both.shape)[both] for end in (inner, outer)))
        self.nests.append((found[0], found[1]))
        return bool(both.all() and np.diff(found[0]).all())

    def pin(self, labels: Tensor, reason: str, *, kernel: bool = False) -> None:
        """These labels may not move."""
        unique = compact(labels).unique()
        self.pins.append(Pin(unique[unique != NONE], self.node, reason, kernel))

    def immovable(self, labels: Tensor) -> bool:
        """Whether all of these were pinned, by themselves."""
        if not self.pins:
            return False
        own, pinned = compact(labels), torch.cat([p.labels for p in self.pins])
        # one label tells most that aren't, in less time than it takes to sort them all
        corner = own[(slice(0, 1),) * own.dim()].reshape(-1)
        return bool((pinned == corner).any()) and bool(torch.isin(own, pinned).all())

    def couple(self) -> None:
        """The current node's result mixes all channels of a group."""
        self.coupled.add(self.node)

    def localise(self, weight: Tensor, dim: int, labels: Tensor) -> bool:
        """Make a weight axis block-local: it has other labels in every row. False: impossible."""
        names = self.names_of(weight)
        if not names or names[0] in {axis.key for axis in self.local}:
            return False
        for key in names:
            self.axes.pop(Axis(key, dim), None)
            self.local[Axis(key, dim)] = labels
        return True

    def share(self, labels: Tensor, groups: int) -> None:
        """Note that the axes with these labels are shared by groups of rows of a weight."""
        for axis, own in self.axes.items():
            if axis.dim == 1 and own.shape == labels.shape and bool((own == labels).all()):
                self.regroup[axis] = groups

    def flatten(self, labels: Tensor, dims: Sequence[int], keep: int) -> Tensor:
        """One label a position of ``keep``: labels that differ over ``dims`` are tied."""
        for dim in dims:
            if labels.shape[dim] > 1 and labels.stride(dim) != 0:
                self.tie(labels, any_along(labels, dim))
            labels = any_along(labels, dim)
        return labels.reshape(labels.shape[keep])

    # -- the dispatch ------------------------------------------------------------------------

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        inputs = list(_tensors((*args, *kwargs.values())))
        before = [self.of(a) for a in inputs]
        depends = any(self.depends_on_data(a) for a in inputs)
        result = self.execute(func, args, kwargs)
        outs = tuple(_tensors(result if isinstance(result, (tuple, list)) else (result,)))
        if depends:
            self._data.update(id(o) for o in outs)
            for out in outs:
                self._remember(out)
        if outs and any(before):
            name = cast(str, func._schema.name).split("::")[-1]
            self._apply(Call(name, func, args, kwargs, outs), inputs)
        return result

    def _apply(self, call: Call, inputs: Sequence[Tensor]) -> None:
        rule = self.rules.get(call.name) or self.rules.get(call.name.rstrip("_"))
        if rule is None:
            return self._unknown(call, inputs, f"no rule for the operator {call.name}")
        try:
            results = rule(self, call)
            for out, coordinates in zip(call.outs, results, strict=False):
                settled = [canonical(c) for c in coordinates]
                self._keep(out, settled)
                self.sites += map(compact, settled)  # also single channels: they're picked
        except Refused as refusal:
            self._unknown(call, inputs, f"{call.name}: {refusal}")

    def _unknown(self, call: Call, inputs: Sequence[Tensor], reason: str) -> None:
        for tensor in inputs:
            for labels in self.of(tensor):
                self.pin(labels, reason)
        for out in call.outs:
            self.assign(out, [])


class Refused(Exception):
    """A rule doesn't cover this use of its operator: freeze what it touches, with this reason."""
