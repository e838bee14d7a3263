"""Run the sources on the calibration data and sum up the statistics of every group.

All sources see a batch before the next one comes; what is kept are sums (DESIGN section 4).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from pleas_fx.algebra.moments import Between, Moments, RowSums, is_finite
from pleas_fx.algebra.selection import WIDE
from pleas_fx.errors import CalibrationError
from pleas_fx.extract import Extractor, Runner, extractor, positions
from pleas_fx.ir import Group, GroupId, IntArray, Program, Symmetry
from pleas_fx.rules.modules import channelwise, contraction, is_depthwise

Batch = tuple[Tensor, ...]
See = Callable[[int, int, str, Any], None]  # number of the source and of the batch, node, value
Order = Callable[[int, int], Sequence[int]]  # numbers of the sources, by the batch's and how many
POINTS = 6  # places per group and kind that are observed
FEWEST_ROWS = 4096  # at each of them


def unseen(source: int, batch: int, node: str, value: Any) -> None:
    """Let a value go by."""


def in_order(batch: int, sources: int) -> Sequence[int]:
    """As they are numbered."""
    return range(sources)


@dataclass(frozen=True, slots=True)
class Point:
    """Joint sums over all sources of one group's channels at one node."""

    node: str
    moments: RowSums  # of (source 0's channels, source 1's channels, …)
    aligned: bool = True  # whether its rows are the same in all sources: no other channels


@dataclass(frozen=True, slots=True)
class Statistics:
    """What the sources do on the data: where groups are read, and where they are made."""

    read: Mapping[GroupId, tuple[Point, ...]]
    made: Mapping[GroupId, tuple[Point, ...]]
    sources: int

    def points(self, group: GroupId) -> tuple[Point, ...]:
        """All places where the sources' channels can be compared row by row, each once."""
        seen = {p.node: p for p in (*self.read.get(group, ()), *self.made.get(group, ()))}
        return tuple(point for point in seen.values() if point.aligned)

    def for_planning(self) -> Statistics:
        """Without what only matching compares: places where groups are made that are also read."""
        unread = {g: points for g, points in self.made.items() if not self.read.get(g)}
        return replace(self, made=unread)


@dataclass(frozen=True, slots=True)
class Observe:
    """Options of the pass."""

    name: str = "observe"
    seed: int = 0
    rows_per_channel: int = 8

    def run(
        self, programs: Sequence[Program], symmetries: Sequence[Symmetry], batches: Sequence[Batch]
    ) -> Statistics:
        return observe(
            programs, symmetries, batches, seed=self.seed, rows_per_channel=self.rows_per_channel
        )


def observe(
    programs: Sequence[Program],
    symmetries: Sequence[Symmetry],
    batches: Sequence[Batch],
    *,
    seed: int,
    rows_per_channel: int = 8,
    see: See = unseen,
    order: Order = in_order,
    tick: Callable[[], None] = lambda: None,
) -> Statistics:
    """Joint moments of every group at the places where it is read and made.

    ``rows_per_channel`` are shared out among the places of a group, whose moments are added up.
    ``see`` is shown every value that the sources make, on the way, in this ``order`` of sources.

    Raises:
        CalibrationError: a source turns a batch into NaN or Inf; names batch and layer.
    """
    sums = _Sums(programs, symmetries, len(batches), rows_per_channel)
    with torch.no_grad():
        for number, batch in enumerate(batches):
            rng = np.random.default_rng((seed, number))
            sums.add(programs, batch, number, rng, see, order(number, len(programs)))
            tick()
    return sums.result()


def planned_groups(symmetry: Symmetry) -> tuple[Group, ...]:
    """The groups that a plan decides about, movable ones first."""
    return (*symmetry.groups, *symmetry.fixed)


class _Sums:
    def __init__(
        self,
        programs: Sequence[Program],
        symmetries: Sequence[Symmetry],
        batches: int,
        rows_per_channel: int,
    ) -> None:
        self.sources = len(programs)
        self.symmetry = symmetries[0]
        self.wanted = _wanted(programs[0], self.symmetry)
        self.extractors: dict[tuple[str, GroupId], list[Extractor]] = {}
        self.moments: dict[tuple[str, GroupId], RowSums] = {}
        self.quota: dict[tuple[str, GroupId], int] = {}
        sizes = {g.id: g.size for g in planned_groups(symmetries[0])}
        places = {
            (n, g): len(nodes) for kind in self.wanted for g, nodes in kind.items() for n in nodes
        }
        for key, points in places.items():
            found = [extractor(s.layout, *key) for s in symmetries]
            if all(f is not None for f in found) and len({f.index.shape for f in found if f}) == 1:
                self.extractors[key] = [f for f in found if f is not None]
                total = rows_per_channel * self.sources * sizes[key[1]] // points + FEWEST_ROWS
                times = self.extractors[key][0].index.shape[0]
                self.quota[key] = -(-total // (batches * times))
        self.moments = {key: self._empty(key, sizes[key[1]]) for key in self.extractors}

    def _empty(self, key: tuple[str, GroupId], size: int) -> RowSums:
        """Of all channels where plans are made from it, else what matching compares."""
        node, group = key
        if size <= WIDE:
            return Moments.zeros(size * self.sources)
        read = [n for n in self.wanted[0].get(group, ()) if (n, group) in self.extractors]
        if read and node not in read:
            return Between.zeros(size * self.sources, self.sources, dtype=torch.float32)
        return Moments.zeros(size * self.sources, dtype=torch.float32)

    def add(
        self,
        programs: Sequence[Program],
        batch: Batch,
        number: int,
        rng: np.random.Generator,
        watch: See,
        order: Sequence[int],
    ) -> None:
        by_node: dict[str, list[GroupId]] = {}
        for node, group in self.extractors:
            by_node.setdefault(node, []).append(group)
        samples: dict[tuple[str, GroupId], IntArray] = {}
        rows: dict[tuple[str, GroupId], dict[int, Tensor]] = {key: {} for key in self.extractors}

        for s in order:

            def see(node: fx.Node, value: Any, s: int = s) -> None:
                for group in by_node.get(node.name, ()):
                    key = (node.name, group)

                    def sample(total: int, key: tuple[str, GroupId] = key) -> IntArray:
                        if key not in samples:
                            samples[key] = positions(rng, total, self.quota[key])
                        return samples[key]

                    part = self.extractors[key][s].rows(value, sample)
                    if not is_finite(part):
                        raise CalibrationError(
                            f"batch {number}: source {s} has NaN or Inf at node {node.name}"
                        )
                    rows[key][s] = part
                watch(s, number, node.name, value)

            Runner(programs[s].module, see).run(*batch)
        for key, parts in rows.items():
            joined = torch.cat([parts[s] for s in range(self.sources)], 1)
            self.moments[key].add(joined.float().cpu())

    def result(self) -> Statistics:
        """The sums over all batches."""

        def collect(wanted: Mapping[GroupId, Sequence[str]]) -> dict[GroupId, tuple[Point, ...]]:
            return {
                g: tuple(self._point(n, g) for n in nodes if (n, g) in self.moments)
                for g, nodes in wanted.items()
            }

        return Statistics(collect(self.wanted[0]), collect(self.wanted[1]), self.sources)

    def _point(self, node: str, group: GroupId) -> Point:
        return Point(node, self.moments[node, group], _aligned(self.symmetry, node, group))


def _wanted(
    program: Program, symmetry: Symmetry
) -> tuple[dict[GroupId, list[str]], dict[GroupId, list[str]]]:
    """Per group the nodes that its consumers read, and those its producers make (after norms)."""
    read: dict[GroupId, list[str]] = {}
    made: dict[GroupId, list[str]] = {}
    for node in program.module.graph.nodes:
        if node.op != "call_module":
            continue
        module = program.module.get_submodule(str(node.target))
        if contraction(module) is not None and not is_depthwise(module):
            _note(read, node.all_input_nodes[0], symmetry)
        is_layer = contraction(module) is not None or channelwise(module) is not None
        if is_layer and not _followed_by_norm(program, node):
            _note(made, node, symmetry)
    return _thin(read), _thin(made)


def _followed_by_norm(program: Program, node: fx.Node) -> bool:
    users = list(node.users)
    if len(users) != 1 or users[0].op != "call_module":
        return False
    return channelwise(program.module.get_submodule(str(users[0].target))) is not None


def _note(where: dict[GroupId, list[str]], node: fx.Node, symmetry: Symmetry) -> None:
    planned = {g.id for g in planned_groups(symmetry)}
    for classes in symmetry.layout.values.get(node.name, ()):
        for group in np.unique(symmetry.layout.group[classes[classes >= 0]]).tolist():
            if group in planned and node.name not in where.setdefault(group, []):
                where[group].append(node.name)


def _aligned(symmetry: Symmetry, node: str, group: GroupId) -> bool:
    """Whether no other axis of the value moves: its channels would be rows, in another order."""
    layout, moving = symmetry.layout, [g.id for g in symmetry.groups if g.id != group]
    axes = [layout.group[c[c >= 0]] for c in layout.values.get(node, ())]
    return not any(np.isin(own, moving).any() for own in axes if not (own == group).any())


def _thin(where: dict[GroupId, list[str]]) -> dict[GroupId, list[str]]:
    """At most ``POINTS`` nodes a group, evenly along the depth."""
    result = {}
    for group, nodes in where.items():
        picks = np.unique(np.linspace(0, len(nodes) - 1, POINTS).round().astype(int))
        result[group] = [nodes[i] for i in picks]
    return result
