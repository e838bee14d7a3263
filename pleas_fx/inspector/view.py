"""What the inspector shows: boxes, edges, groups and frozen axes, without a coordinate."""

from __future__ import annotations

from dataclasses import dataclass

from pleas_fx.ir import Axis, Blocks, Certificate

UNTIED = ""  # the key of channels in no group that a weight carries


@dataclass(frozen=True, slots=True)
class Share:
    """A run of channels of one group along an axis. Keys: ``3`` a group, ``f0`` a frozen cause."""

    key: str
    count: int

    @property
    def frozen(self) -> bool:
        return self.key.startswith("f")


Shares = tuple[Share, ...]


@dataclass(frozen=True, slots=True)
class AxisUse:
    """One axis of one weight of a box, and whose channels lie on it."""

    axis: Axis
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Box:
    """A layer with the norms and activations that only follow it, or an operator."""

    kind: str  # "layer" carries weights, "op", "input", "output"
    name: str
    text: str  # what it computes, shortly
    names: tuple[str, ...]  # every node and module in it: what a search finds
    shape: tuple[int, ...]
    entering: Shares
    inside: Shares  # channels of a layer that neither enter nor leave it (attention heads)
    leaving: Shares
    axes: tuple[AxisUse, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """Everything that runs through this box."""
        shares = (*self.entering, *self.inside, *self.leaving)
        found = [s.key for s in shares] + [k for use in self.axes for k in use.keys]
        return tuple(dict.fromkeys(k for k in found if k != UNTIED))


@dataclass(frozen=True, slots=True)
class Edge:
    """The value of box ``source``, read by box ``target``."""

    source: int
    target: int
    shares: Shares

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(s.key for s in self.shares if s.key != UNTIED))


@dataclass(frozen=True, slots=True)
class LayerUse:
    """A layer of a group, and the axes of its parameters that the group is on."""

    layer: str
    axes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GroupView:
    """A permutation group as people look at it."""

    key: str
    size: int
    blocks: Blocks | None
    axes: int
    layers: tuple[LayerUse, ...]
    adds: int  # additions that join two values of this group: a residual stream
    colour: int
    trunk: bool  # drawn strong: a residual stream

    @property
    def name(self) -> str:
        return f"g{self.key}"

    @property
    def structure(self) -> str:
        """Its size, or its blocks."""
        if self.blocks is None:
            return str(self.size)
        return f"{self.blocks.count} blocks of {self.blocks.inner}"

    @property
    def figure(self) -> str:
        """The same, as short as it gets."""
        return f"{self.blocks.count} × {self.blocks.inner}" if self.blocks else str(self.size)


@dataclass(frozen=True, slots=True)
class FrozenView:
    """Axes that one node froze for one reason."""

    key: str
    node: str
    reason: str
    axes: tuple[Axis, ...]


@dataclass(frozen=True, slots=True)
class View:
    """The whole page. Boxes stand in the order of execution: edges lead from lower to higher."""

    boxes: tuple[Box, ...]
    edges: tuple[Edge, ...]
    groups: tuple[GroupView, ...]
    frozen: tuple[FrozenView, ...]
    certificate: Certificate
