"""How the proofs of rules look at a network: permute, run in float64, compare."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pleas_fx import permutation_groups
from pleas_fx.ir import Axis, Group, GroupId, IntArray, Permutation, Symmetry
from pleas_fx.permuting import permuted
from pleas_fx.rules.reasons import OUTPUT, OUTPUT_BESIDE
from tests.randomise import seeded
from tests.rule_cases import IMAGE, Case

EQUAL = 1e-9  # relative, float64: what the certificate asks for
DIFFERENT = 1e-6
BITS = {"bitwise_and", "bitwise_or", "bitwise_not"}


class Analysed(NamedTuple):
    """A network in float64, an input, its output, and its symmetry."""

    model: nn.Module
    x: Tensor
    y: Tensor
    symmetry: Symmetry

    def change(
        self, permutation: Mapping[GroupId, IntArray], axes: set[Axis] | None = None
    ) -> float:
        """How much the output changes, relatively, when some axes of a permutation move."""
        symmetry = self.symmetry
        if axes is not None:
            kept = {a: c for a, c in symmetry.layout.axes.items() if a in axes}
            symmetry = replace(symmetry, layout=replace(symmetry.layout, axes=kept))
        other = output(permuted(symmetry, self.model, Permutation(permutation)), self.x)
        return float((other - self.y).norm() / self.y.norm())


def output(model: nn.Module, x: Tensor) -> Tensor:
    """The output, without gradients; operations in place don't reach the input."""
    with torch.no_grad():
        return model(x.clone())


def example(shape: tuple[int, ...] = IMAGE) -> Tensor:
    """An input without any symmetry of its own."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@cache
def analysed(case: Case) -> Analysed:
    """The network of a case with random parameters, and its groups."""
    model, x = seeded(case.build, 0).double(), example(case.shape)
    return Analysed(model, x, output(model, x), permutation_groups(model, x))


def sizes(found: tuple[Group, ...]) -> list[str]:
    """Sizes of groups, blocks as count x inner."""
    return [f"{g.blocks.count}x{g.blocks.inner}" if g.blocks else str(g.size) for g in found]


def names(group: Group) -> str:
    """The axes of a group."""
    return " ".join(f"{key}.{dim}" for key, dim in group.axes)


def frozen(symmetry: Symmetry) -> set[str]:
    """Axes that something other than the network's output froze."""
    ends = (OUTPUT, OUTPUT_BESIDE)
    return {f"{f.axis.key}.{f.axis.dim}" for f in symmetry.frozen if f.reason not in ends}


def families(symmetry: Symmetry) -> list[list[Group]]:
    """Groups by themselves, those with blocks with their family."""
    found: dict[tuple[bool, int], list[Group]] = {}
    for g in (*symmetry.groups, *symmetry.implicit):
        found.setdefault((g.blocks is None, g.blocks.family if g.blocks else g.id), []).append(g)
    return list(found.values())


def step(group: Group) -> IntArray:
    """Every channel to the next place, inside its block where there are blocks."""
    order = np.arange(group.size)
    if group.blocks is None:
        return np.roll(order, 1)
    return np.roll(order.reshape(group.blocks.count, -1), 1, axis=1).reshape(-1)


def proper_subsets(axes: tuple[Axis, ...]) -> Iterator[set[Axis]]:
    """Some of the axes, but not all."""
    for size in range(1, len(axes)):
        yield from map(set, combinations(axes, size))


def loose_ties(given: Analysed, group: Group) -> list[set[Axis]]:
    """Parts of a group that could move without the rest."""
    order = {group.id: step(group)}
    return [s for s in proper_subsets(group.axes) if given.change(order, s) < DIFFERENT]


def exchanges(size: int) -> Iterator[IntArray]:
    """A step of all channels, and every exchange of neighbours."""
    yield np.roll(np.arange(size), 1)
    for i in range(size - 1):
        order = np.arange(size)
        order[[i, i + 1]] = i + 1, i
        yield order


def needless(given: Analysed) -> str:
    """Frozen groups in which some channels could be exchanged, alone or two groups together."""
    fixed = [g for g in given.symmetry.fixed if g.size > 1]
    found = [(g,) for g in fixed if exchangeable(given, g)]
    stuck = [g for g in fixed if (g,) not in found]
    pairs = [(a, b) for a, b in combinations(stuck, 2) if a.size == b.size]
    found += [pair for pair in pairs if exchangeable(given, *pair)]
    return " / ".join(" + ".join(names(g) for g in together) for together in found)


def exchangeable(given: Analysed, *together: Group) -> bool:
    """Whether exchanging some channels of these groups changes nothing."""
    orders = exchanges(together[0].size)
    return any(given.change({g.id: o for g in together}) < DIFFERENT for o in orders)


def occurrences(given: Analysed, group: Group) -> list[float]:
    """How often a channel of a group occurs on each of its axes."""
    layout = given.symmetry.layout
    return [
        float((layout.group[layout.axes[a]] == group.id).sum() / group.size) for a in group.axes
    ]


def composite(name: str) -> bool:
    """Whether torch takes an operator apart before it is dispatched, so that no rule sees it."""
    operator = getattr(torch.ops.aten, name, None)
    if operator is None:
        return False
    overloads = [f"aten::{name}" + f".{o}" * (o != "default") for o in operator.overloads()]
    key = "CompositeImplicitAutograd"
    try:
        return all(torch._C._dispatch_has_kernel_for_dispatch_key(o, key) for o in overloads)
    except RuntimeError:  # known to TorchScript only
        return True


def draw(generator: torch.Generator) -> Tensor:
    """Numbers between 0.1 and 0.9, in which every operator is defined or consistently isn't."""
    return torch.rand(2, 5, 3, 7, generator=generator, dtype=torch.float64) * 0.8 + 0.1


def operands(name: str) -> tuple[Any, list[Any], dict[str, Any]]:
    """An overload of an operator and arguments for it: tensors are drawn, flags are off."""
    packet = getattr(torch.ops.aten, name)
    for overload in packet.overloads():
        operator = getattr(packet, overload)
        values = _arguments(name, operator._schema)
        if values is not None and not operator._schema.is_mutable:
            return operator, *values
    raise NotImplementedError(f"no arguments for {name}")


def _arguments(name: str, schema: Any) -> tuple[list[Any], dict[str, Any]] | None:
    generator = torch.Generator().manual_seed(0)
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for argument in schema.arguments:
        kind = str(argument.type)
        if kind == "Tensor" or (name == "clamp" and kind == "Optional[Tensor]"):
            value: Any = draw(generator) - 0.5 * (name == "_prelu_kernel")
            if name in BITS or argument.name in ("mask", "condition"):
                value = value > 0.5
        elif argument.has_default_value():
            continue
        elif kind in ("number", "float"):
            value = 0.5
        elif kind == "bool":
            value = False
        else:
            return None
        if argument.kwarg_only:
            kwargs[argument.name] = value
        else:
            args.append(value)
    tensors = [a for a in args if isinstance(a, Tensor)]
    return (args, kwargs) if tensors and (name != "clamp" or len(tensors) > 1) else None
