"""What a network costs, and what a merged one would: bilinear in the lanes at a layer's ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import flop_registry

from pleas_fx.explicit import explicit_operators, steps_of
from pleas_fx.ir import Axis, Count, FloatArray, GroupId, IntArray, Layout, Program
from pleas_fx.modes import DispatchMode
from pleas_fx.rules.modules import contraction


def count(model: nn.Module, inputs: Sequence[Tensor]) -> Count:
    """Parameters, and multiply-adds x 2 that one example executes, those of attention included."""
    single = tuple(t[:1] if t.dim() > 1 else t for t in inputs)
    with explicit_operators(), steps_of(*model.modules()), torch.no_grad(), _Flops() as counter:
        model(*single)
    params = sum(p.numel() for p in model.parameters())
    return Count(params, counter.total)


class _Flops(DispatchMode):
    """Sums up what torch's table says of every operator.

    ``FlopCounterMode`` gives the same number, but follows modules by hooks, and importing what it
    needs to be compiled takes seconds.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        formula = flop_registry.get(getattr(func, "_overloadpacket", None))
        if formula is None and func is not torch.ops.prim.device.default:
            with self:
                composed = func.decompose(*args, **kwargs)
            if composed is not NotImplemented:
                return composed
        result = func(*args, **kwargs)
        if formula is not None:
            self.total += int(formula(*args, **kwargs, out_val=result))
        return result


@dataclass(frozen=True, slots=True)
class Term:
    """One layer: its cost in a source, and the share of each group at its two ends.

    ``reads`` None: the layer works inside a lane (depthwise, grouped, per channel).
    Shares sum to one; a group id of -1 stands for channels that aren't planned.
    """

    flops: float
    params: float
    makes: Mapping[int, float]
    reads: Mapping[int, float] | None


def terms(program: Program, layout: Layout) -> tuple[Term, ...]:
    """One term for every layer with weights."""
    found: list[Term] = []
    for node in program.module.graph.nodes:
        if node.op == "call_module":
            layer = program.module.get_submodule(str(node.target))
            if isinstance(layer, nn.RNNBase):
                found += _of_steps(program, layout, node, layer)
            elif (term := _term(program, layout, node)) is not None:
                found.append(term)
    return tuple(found)


def _of_steps(program: Program, layout: Layout, node: fx.Node, layer: nn.RNNBase) -> Iterator[Term]:
    """Of a recurrent layer: every weight is used once a step."""
    sequences = program.shapes.get(node.all_input_nodes[0].name, ())
    steps = int(np.prod(sequences[:-1])) / len(program.inputs[0])
    for key, weight in layer.named_parameters():
        params, axes = float(weight.numel()), [Axis(f"{node.target}.{key}", d) for d in (0, 1)]
        makes = _shares(layout, axes[0])
        reads = _shares(layout, axes[1]) if weight.dim() > 1 else None
        yield Term(2.0 * steps * params if reads else 0.0, params, makes, reads)


def _term(program: Program, layout: Layout, node: fx.Node) -> Term | None:
    module = program.module.get_submodule(str(node.target))
    params = float(sum(p.numel() for p in module.parameters()))
    if params == 0:
        return None
    entry = contraction(module)
    if entry is None:
        key = next(k for k, _ in module.named_parameters())
        return Term(0.0, params, _shares(layout, Axis(f"{node.target}.{key}", 0)), None)
    weight = module.get_parameter("weight")
    makes = _shares(layout, Axis(f"{node.target}.weight", entry.out_dim))
    reads = _shares(layout, Axis(f"{node.target}.weight", entry.in_dim))
    inside = int(getattr(module, "groups", 1)) > 1
    return Term(_flops(program, node, weight), params, makes, None if inside else reads)


def _flops(program: Program, node: fx.Node, weight: Tensor) -> float:
    """Of one example: every weight is used at every output position (input, if transposed)."""
    module = program.module.get_submodule(str(node.target))
    transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
    where = node.all_input_nodes[0].name if transposed else node.name
    shape = program.shapes[where]
    positions = int(np.prod(shape[1:])) // (
        shape[-1] if isinstance(module, nn.Linear) else shape[1]
    )
    return 2.0 * positions * weight.numel()


def _shares(layout: Layout, axis: Axis) -> dict[int, float]:
    classes: IntArray | None = layout.axes.get(axis)
    if classes is None or classes.ndim > 1:
        return {-1: 1.0}
    groups, counts = np.unique(layout.group[classes], return_counts=True)
    return {int(g): float(c) / len(classes) for g, c in zip(groups, counts, strict=True)}


class CostModel:
    """Relative cost of a merged network, given per group how much of each lane it has.

    ``x[g, S]``: slots of group g with membership ``memberships[S]``, over a source's channels.
    """

    def __init__(
        self,
        layer_terms: Sequence[Term],
        groups: Sequence[GroupId],
        memberships: Sequence[int],
        unplanned: FloatArray,
        *,
        resource: str,
    ) -> None:
        self.row = {int(g): k for k, g in enumerate(groups)}
        self.unplanned = len(groups)
        self.memberships = memberships
        self.meets = np.array([[float(bool(a & b)) for b in memberships] for a in memberships])
        self.background = unplanned
        self._pairs = np.zeros((self.unplanned + 1,) * 2)  # what making g costs a unit of reading h
        self._own = np.zeros(self.unplanned + 1)
        for term in layer_terms:
            self._add(term, float(getattr(term, resource)))
        self._both = self._pairs + self._pairs.T

    def _add(self, term: Term, amount: float) -> None:
        for g, share in term.makes.items():
            made = self.row.get(g, self.unplanned)
            if term.reads is None:
                self._own[made] += amount * share
                continue
            for h, part in term.reads.items():
                self._pairs[made, self.row.get(h, self.unplanned)] += amount * share * part

    def _full(self, x: FloatArray) -> FloatArray:
        return np.vstack([x, self.background])

    def total(self, x: FloatArray) -> float:
        """The cost of a whole network."""
        full = self._full(x)
        reading = full @ self.meets
        return float((full * (self._pairs @ reading)).sum() + self._own @ full.sum(1))

    def gradient(self, x: FloatArray) -> FloatArray:
        """Cost of one more unit of every lane, all else equal; (groups, memberships)."""
        slopes = self._both @ (self._full(x) @ self.meets) + self._own[:, None]
        return np.asarray(slopes[:-1])

    def slope(self, x: FloatArray, rows: Sequence[int]) -> FloatArray:
        """The sum of some rows of the gradient; (memberships,)."""
        both = self._both[list(rows)].sum(0)
        return np.asarray((both @ self._full(x)) @ self.meets + self._own[list(rows)].sum())
