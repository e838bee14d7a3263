"""The values that flow between passes: frozen, printable, without behaviour that edits.

Vocabulary as in the literature: a *group* is a set of channel classes that may be exchanged,
a *slot* is one channel of the merged network, its *membership* the sources it stands for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, NewType

import numpy as np
import numpy.typing as npt
from torch import Tensor, fx, nn

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]

GroupId = NewType("GroupId", int)
Membership = NewType("Membership", int)  # bit s is set when source s is a member


def everyone(sources: int) -> Membership:
    """The membership that holds all ``sources`` sources."""
    return Membership((1 << sources) - 1)


def joint(sources: Iterable[int]) -> Membership:
    """The membership that holds some sources."""
    return Membership(sum(1 << s for s in sources))


def only(source: int) -> Membership:
    """The membership that holds one source."""
    return Membership(1 << source)


def members(membership: Membership) -> tuple[int, ...]:
    """The sources in a membership, ascending."""
    return tuple(s for s in range(int(membership).bit_length()) if membership >> s & 1)


def letters(membership: Membership) -> str:
    """``AB`` for sources 0 and 1: how memberships are printed and modules are named."""
    return "".join(chr(ord("A") + s) if s < 26 else f"S{s}" for s in members(membership))


class Axis(NamedTuple):
    """One dimension of one parameter or buffer."""

    key: str
    dim: int


@dataclass(frozen=True, slots=True)
class Program:
    """A traced network with concrete shapes, in eval mode, perhaps with the model's parameters."""

    module: fx.GraphModule
    inputs: tuple[Tensor, ...]
    shapes: Mapping[str, tuple[int, ...]]
    modules: Mapping[str, str]  # node name -> path of the module whose code made it
    general: bool = True  # holds for other numbers of examples, too, where the model does

    def __str__(self) -> str:
        rows = (
            f"{node.name}: {self.shapes.get(node.name, '')}" for node in self.module.graph.nodes
        )
        return "\n".join(rows)


@dataclass(frozen=True, slots=True)
class Blocks:
    """Block structure of a group: whole blocks move as units, groups of one family together."""

    family: int
    count: int
    inner: int


@dataclass(frozen=True, slots=True)
class Group:
    """A permutation group: ``size`` channel classes; block-major order when ``blocks`` is set."""

    id: GroupId
    size: int
    axes: tuple[Axis, ...]
    blocks: Blocks | None

    def __str__(self) -> str:
        shape = f"{self.blocks.count}x{self.blocks.inner}" if self.blocks else str(self.size)
        return f"g{self.id}[{shape}] " + " ".join(f"{key}.{dim}" for key, dim in self.axes)


@dataclass(frozen=True, slots=True)
class Frozen:
    """An axis that may not move, the node that froze it and why."""

    axis: Axis
    node: str
    reason: str


@dataclass(frozen=True, slots=True)
class Certificate:
    """Evidence that the groups are right: random permutations leave the function unchanged."""

    max_error: float  # relative, float64
    trials: int
    coverage: float  # share of weight-axis entries that can move
    passed: bool
    negative_control_caught: bool
    culprits: tuple[GroupId, ...] = ()  # groups the certificate had to freeze: bugs of a rule


@dataclass(frozen=True, slots=True)
class Permutation:
    """Per group, which channel class comes to each place: ``order[g][i]`` moves to ``i``."""

    order: Mapping[GroupId, IntArray]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where classes sit: the group and the channel in it of every class id."""

    group: IntArray
    channel: IntArray
    axes: Mapping[Axis, IntArray]  # class id at each index; 2-d (row, index) for block-local axes
    values: Mapping[str, tuple[IntArray, ...]]  # node -> one class array per coordinate, -1: none


@dataclass(frozen=True, slots=True)
class Symmetry:
    """Result of the group analysis."""

    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    certificate: Certificate
    fixed: tuple[Group, ...] = ()  # the groups of frozen classes, in the same form
    implicit: tuple[Group, ...] = ()  # groups that occur in activations only, on no parameter
    bundles: tuple[frozenset[GroupId], ...] = ()  # fixed groups that one operator froze together
    coupled: frozenset[str] = frozenset()  # nodes whose result mixes the channels of a group
    layout: Layout = field(
        default_factory=lambda: Layout(np.zeros(0, np.int64), np.zeros(0, np.int64), {}, {})
    )

    def random(self, seed: int) -> Permutation:
        """A uniformly random element of the symmetry, blocks included."""
        from pleas_fx.permuting import random_permutation

        return random_permutation(self, seed)

    def apply(self, model: nn.Module, permutation: Permutation) -> nn.Module:
        """A functionally equal copy of ``model`` with permuted channels."""
        from pleas_fx.permuting import permuted

        return permuted(self, model, permutation)

    def __str__(self) -> str:
        lines = [str(group) for group in self.groups]
        lines += [f"frozen {f.axis.key}.{f.axis.dim}: {f.reason} ({f.node})" for f in self.frozen]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Matching:
    """Per group, ``partner[g][s, i]``: the channel of source s that matches channel i of source 0.

    ``similarity[g][i]`` is the mean similarity over the matched sources, 1 for equal channels.
    """

    partner: Mapping[GroupId, IntArray]
    similarity: Mapping[GroupId, FloatArray]


@dataclass(frozen=True, slots=True)
class Lane:
    """The slots of a group with one membership.

    ``channels`` has one row a slot and one column a source; -1 where the slot has no channel.
    """

    membership: Membership
    channels: IntArray

    def __len__(self) -> int:
        return len(self.channels)


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """What becomes of one group: merged, kept and dropped channels, and the error this predicts."""

    group: GroupId
    size: int
    lanes: tuple[Lane, ...]
    similarity: float  # mean over the merged slots, NaN when there are none
    predicted_error: float  # relative to the signal its consumers read
    sources: int
    sizes: tuple[int, ...] = ()  # of every source; none: all have the same

    @property
    def slots(self) -> int:
        return sum(len(lane) for lane in self.lanes)

    @property
    def width(self) -> float:
        """Slots relative to one source's channels."""
        return self.slots / self.size

    @property
    def merged(self) -> tuple[tuple[int, ...], ...]:
        """The merged slots, as one channel a source (-1: not in it)."""
        rows = [lane.channels for lane in self.lanes if len(members(lane.membership)) > 1]
        return tuple(tuple(int(c) for c in row) for block in rows for row in block)

    @property
    def kept(self) -> tuple[tuple[int, ...], ...]:
        """Per source, its channels that are kept apart."""
        return tuple(self._single(s) for s in range(self.sources))

    @property
    def dropped(self) -> tuple[tuple[int, ...], ...]:
        """Per source, its channels that are in no slot."""
        return tuple(self._missing(s) for s in range(self.sources))

    def _single(self, source: int) -> tuple[int, ...]:
        rows = [lane.channels[:, source] for lane in self.lanes if lane.membership == 1 << source]
        return tuple(int(c) for row in rows for c in row)

    def _missing(self, source: int) -> tuple[int, ...]:
        used = {int(c) for lane in self.lanes for c in lane.channels[:, source]}
        size = self.sizes[source] if self.sizes else self.size
        return tuple(c for c in range(size) if c not in used)

    def __str__(self) -> str:
        parts = " ".join(f"{letters(lane.membership)}:{len(lane)}" for lane in self.lanes)
        return f"g{self.group} {self.width:.2f}x [{parts}] error {self.predicted_error:.3g}"


@dataclass(frozen=True, slots=True)
class Plan:
    """The width of every group and the membership of every slot."""

    groups: tuple[GroupPlan, ...]
    sources: int
    predicted_error: float = float("nan")
    note: str = ""

    def __str__(self) -> str:
        return "\n".join(str(group) for group in self.groups)


@dataclass(frozen=True, slots=True)
class Count:
    """Size of a network: parameters, and executed multiply-adds x 2 for one example."""

    params: int
    flops: int


@dataclass(frozen=True, slots=True)
class LayerFit:
    """How well one layer of the merged network was fitted."""

    name: str
    # Unexplained share of the target's variance, behind the activation that reads the layer where
    # one alone does; NaN when nothing was fitted.
    residual: float
    rows: int
    unknowns: int
    condition: float
    rank: int
    # "prior": the sources' average was exact already and stays. "answers": least squares, then
    # towards the sources' probabilities; the residual is the unexplained share of these.
    status: str = "cholesky"


@dataclass(frozen=True, slots=True)
class Report:
    """What the merge did: per layer, and in total."""

    layers: tuple[LayerFit, ...]
    sources: tuple[Count, ...]
    merged: Count
    seconds: Mapping[str, float]
    peak_bytes: int = 0  # largest amount of activations held at once while fitting
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        base = self.sources[0]
        rows = [
            f"{name:9}{count.params:>14,} parameters, {count.params / max(base.params, 1):.2f}x"
            f"{count.flops:>20,} FLOPs, {count.flops / max(base.flops, 1):.2f}x"
            for name, count in (
                *((f"source {k}", own) for k, own in enumerate(self.sources)),
                ("merged", self.merged),
            )
        ]
        fitted = [layer for layer in self.layers if math.isfinite(layer.residual)]
        if fitted:
            worst = max(fitted, key=lambda layer: layer.residual)
            rows.append(f"layers unexplained by {worst.residual:.1%} at most ({worst.name})")
        slowest = sorted(self.seconds.items(), key=lambda item: -item[1])[:3]
        steps = ", ".join(f"{name} {spent:.1f}" for name, spent in slowest)
        rows.append(f"{sum(self.seconds.values()):.1f} s ({steps})")
        return "\n".join([*rows, *(f"warning: {text}" for text in self.warnings)])
