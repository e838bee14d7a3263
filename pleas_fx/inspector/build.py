"""From a program and its symmetry to what the inspector shows."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from torch import fx

from pleas_fx.inspector.boxes import Bundle, bundles, drawn_nodes, has_weights, inputs_of
from pleas_fx.inspector.legend import frozen_views, group_views, layer_of
from pleas_fx.inspector.operators import describe, operator_name, parameter_keys, short, weight_dims
from pleas_fx.inspector.view import UNTIED, AxisUse, Box, Edge, Share, Shares, View
from pleas_fx.ir import Axis, GroupId, IntArray, Program, Symmetry

RUNS = 48  # more runs than this along one axis are shown by group


def build(program: Program, symmetry: Symmetry) -> View:
    """Everything on the page."""
    reader = _Reader(program, symmetry, _keys(symmetry))
    found = bundles(program)
    return View(
        boxes=tuple(_box(reader, bundle) for bundle in found),
        edges=_edges(reader, found),
        groups=group_views(program, symmetry),
        frozen=frozen_views(symmetry),
        certificate=symmetry.certificate,
    )


def _keys(symmetry: Symmetry) -> dict[GroupId, str]:
    """What groups are called: by their number, frozen ones by their cause."""
    keys = {group.id: str(int(group.id)) for group in symmetry.groups}
    causes = {axis: view.key for view in frozen_views(symmetry) for axis in view.axes}
    for group in symmetry.fixed:
        cause = next((causes[axis] for axis in group.axes if axis in causes), None)
        if cause is not None:
            keys[group.id] = cause
    return keys


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads off which groups lie on axes and values."""

    program: Program
    symmetry: Symmetry
    keys: Mapping[GroupId, str]

    def axis(self, axis: Axis) -> Shares:
        """The groups along an axis of a parameter; none where it has no channels."""
        classes = self.symmetry.layout.axes.get(axis)
        return () if classes is None else self._runs(classes)

    def value(self, node: fx.Node) -> Shares:
        """The groups along the channel axis of a value: the coordinate with the most of them."""
        if node.name not in self.program.shapes:  # several values at once: those it hands out
            parts = [u for u in node.users if u.target is operator.getitem]
            return _merged(share for part in parts for share in self.value(part))
        coordinates = self.symmetry.layout.values.get(node.name, ())
        options = [self._runs(classes) for classes in coordinates]
        return max(options, key=_weight, default=())

    def axes(self, bundle: Bundle) -> tuple[AxisUse, ...]:
        """All axes of the parameters that a box reads."""
        keys = [k for node in bundle.nodes for k in parameter_keys(node, self.program)]
        wanted = dict.fromkeys(keys)
        return tuple(
            AxisUse(axis, tuple(dict.fromkeys(s.key for s in self._runs(classes) if s.key)))
            for axis, classes in self.symmetry.layout.axes.items()
            if axis.key in wanted
        )

    def _runs(self, classes: IntArray) -> Shares:
        flat = classes.reshape(-1)
        ids = self.symmetry.layout.group[flat[flat >= 0]]
        if not len(ids):
            return ()
        starts = np.flatnonzero(np.diff(ids, prepend=ids[0] - 1))
        counts = np.diff(starts, append=len(ids))
        runs = list(zip(ids[starts].tolist(), counts.tolist(), strict=True))
        if len(runs) > RUNS:
            order = dict.fromkeys(ids.tolist())
            runs = [(i, int((ids == i).sum())) for i in order]
        return _merged(Share(self.keys.get(GroupId(i), UNTIED), n) for i, n in runs)


def _weight(shares: Shares) -> tuple[bool, int]:
    movable = any(s.key and not s.frozen for s in shares)
    return movable, sum(s.count for s in shares if s.key)


def _merged(shares: Iterable[Share]) -> Shares:
    """Neighbours with the same key as one."""
    found: list[Share] = []
    for share in shares:
        if found and found[-1].key == share.key:
            found[-1] = Share(share.key, found[-1].count + share.count)
        else:
            found.append(share)
    return tuple(found)


def _box(reader: _Reader, bundle: Bundle) -> Box:
    program, head = reader.program, bundle.head
    axes = reader.axes(bundle)
    entering, leaving = _ends(reader, bundle)
    outside = {s.key for s in (*entering, *leaving)}
    inside = dict.fromkeys(k for use in axes for k in use.keys if k not in outside)
    keys = [k for node in bundle.nodes for k in parameter_keys(node, program)]
    return Box(
        kind=_kind(program, bundle),
        name=_name(head, parameter_keys(head, program)),
        text=_text(program, bundle),
        names=tuple(dict.fromkeys([*map(layer_of, keys), *(n.name for n in bundle.nodes)])),
        shape=program.shapes.get(bundle.last.name, ()),
        entering=entering,
        inside=tuple(Share(key, 1) for key in inside),
        leaving=leaving,
        axes=axes,
    )


def _name(head: fx.Node, keys: tuple[str, ...]) -> str:
    """The layer; the parameter itself where that is all of it."""
    if not keys:
        return head.name
    return keys[0] if head.op != "call_module" and len(keys) == 1 else layer_of(keys[0])


def _kind(program: Program, bundle: Bundle) -> str:
    ends = {"placeholder": "input", "output": "output"}
    return ends.get(bundle.head.op) or ("layer" if has_weights(program, bundle.nodes) else "op")


def _text(program: Program, bundle: Bundle) -> str:
    if bundle.head.op in ("placeholder", "output"):
        return bundle.head.name
    words = [describe(bundle.head, program)]
    words += [short(n, program) for n in bundle.nodes[1:] if operator_name(n) != "getitem"]
    return " · ".join(dict.fromkeys(filter(None, words)))


def _ends(reader: _Reader, bundle: Bundle) -> tuple[Shares, Shares]:
    """Channels that enter and leave: of the weight where its dims are known, else of the values."""
    head, dims = bundle.head, weight_dims(bundle.head, reader.program)
    sources = [n for n in head.all_input_nodes if n.op != "get_attr"]
    flowing = [shares for shares in map(reader.value, sources) if shares]
    entering: Shares = flowing[0] if flowing else ()
    leaving = reader.value(bundle.last)
    keys = parameter_keys(head, reader.program)
    if dims is None or not keys:
        return entering, leaving
    reads, writes = (reader.axis(Axis(keys[0], dim)) for dim in dims)
    return reads or entering, leaving or writes


def _edges(reader: _Reader, found: tuple[Bundle, ...]) -> tuple[Edge, ...]:
    drawn = set(drawn_nodes(reader.program))
    home = {node: k for k, bundle in enumerate(found) for node in bundle.nodes}
    pairs: dict[tuple[int, int], Shares] = {}
    for k, bundle in enumerate(found):
        for node in bundle.nodes:
            for source in inputs_of(node, drawn):
                if home[source] != k:
                    parts = source.name not in reader.program.shapes
                    value = reader.value(node if parts else source)
                    pairs.setdefault((home[source], k), value)
    return tuple(Edge(source, target, shares) for (source, target), shares in pairs.items())
