"""Find the permutation groups of a program, and certify them (DESIGN section 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from passes.certify import certify
from pleas_fx.blocks import Hash, components
from pleas_fx.classes import (
    Facts,
    Grouping,
    alone,
    assemble,
    collapses,
    positions,
    settled_axes,
    settled_colours,
)
from pleas_fx.explicit import explicit_operators, steps_of
from pleas_fx.ir import Axis, Certificate, IntArray, Program, Symmetry
from pleas_fx.labels import Coordinates, Labeller, compact
from pleas_fx.recall import Recall
from pleas_fx.rules import RULES
from pleas_fx.rules.modules import channelwise, contraction
from pleas_fx.rules.reasons import (
    COMBINED,
    MULTIPLIED,
    OUTPUT,
    OUTPUT_BESIDE,
    SEVERAL,
    SLIDES,
    SUMMED,
    SUMMED_BOTH,
    WRITTEN,
)

ROUNDS = 6
HELD = frozenset({COMBINED, MULTIPLIED, SEVERAL, SLIDES, SUMMED, SUMMED_BOTH, WRITTEN})
NOTHING: Hash = np.zeros(0, np.uint64)
NO_TIES: IntArray = np.zeros((2, 0), np.int64)
UNTRIED = Certificate(float("nan"), 0, 0.0, False, False)


@dataclass(frozen=True, slots=True)
class Groups:
    """Options of the pass."""

    name: str = "groups"
    trials: int = 2
    seed: int = 0

    def run(self, program: Program) -> Symmetry:
        return certify(program, groups(program), trials=self.trials, seed=self.seed)


def groups(program: Program) -> Symmetry:
    """The symmetry of a program, not yet certified.

    Ties that come late (a convolution behind a pixel shuffle) make labels equal that earlier
    operators took for different ones: then the classes found become the labels of another round.
    What turns out to be positions of a table (of tokens, say) has no labels then, and the shared
    axis of a grouped convolution's computed weight has other labels in each group.
    """
    recall = Recall()
    try:
        inputs = _one_example(program)
        labeller, facts = _propagate(program, inputs, recall, {}, NOTHING)
    except RuntimeError:  # a batch size written into the graph
        inputs, recall = program.inputs, Recall()
        labeller, facts = _propagate(program, inputs, recall, {}, NOTHING)
    tables = {str(n.target) for n in program.module.graph.nodes if n.op == "get_attr"}
    read = _read_axes(program)
    unlabelled: frozenset[Axis] = frozenset()
    grouped: dict[Axis, int] = {}
    for _ in range(ROUNDS):
        found = unlabelled | _positions(program, facts, tables, read)
        if found == unlabelled and not labeller.regroup and not collapses(facts):
            break
        grouped = grouped | labeller.regroup
        if alone(facts, found - unlabelled):
            known, colours = settled_axes(facts), settled_colours(facts)
        else:  # what they were tied to isn't known any more
            known, colours = {}, NOTHING
        unlabelled = found
        labeller, facts = _propagate(program, inputs, recall, known, colours, unlabelled, grouped)
    return symmetry(assemble(facts), labeller.coupled)


def _positions(
    program: Program, facts: Facts, tables: Set[str], read: Set[Axis]
) -> frozenset[Axis]:
    """Axes of tables that turn out to be positions; where there are none, axes of layers."""
    own = {axis for axis in facts.axes if axis.key in tables}
    found = positions(facts, own, read, HELD | {OUTPUT_BESIDE}, COMBINED)  # queries, say
    return found or positions(facts, _beside_others(program, facts), read, HELD, COMBINED)


def _beside_others(program: Program, facts: Facts) -> set[Axis]:
    """Output axes of layers that leave channels along another dim: they may mix positions."""
    found: set[Axis] = set()
    for node in program.module.graph.nodes:
        if node.op == "call_module" and len(facts.values.get(node.name, ())) > 1:
            layer = program.module.get_submodule(str(node.target))
            entry = contraction(layer)
            if entry is not None:
                found |= {Axis(f"{node.target}.weight", entry.out_dim)}
                found |= {Axis(f"{node.target}.bias", 0)}
            elif channelwise(layer) is not None:
                found |= {
                    Axis(f"{node.target}.{name}", dim)
                    for name, tensor in layer.named_parameters()
                    for dim in range(tensor.dim())
                }
    return found


def _read_axes(program: Program) -> frozenset[Axis]:
    """The input axes of layers' weights."""
    calls = [str(n.target) for n in program.module.graph.nodes if n.op == "call_module"]
    found = ((key, contraction(program.module.get_submodule(key))) for key in calls)
    return frozenset(Axis(f"{key}.weight", entry.in_dim) for key, entry in found if entry)


def _propagate(
    program: Program,
    inputs: tuple[Tensor, ...],
    recall: Recall,
    known: Mapping[Axis, IntArray],
    colours: Hash,
    unlabelled: frozenset[Axis] = frozenset(),
    grouped: Mapping[Axis, int] = MappingProxyType({}),
) -> tuple[Labeller, Facts]:
    """``known`` labels are those that have one of the ``colours``."""
    labeller = Labeller(RULES, known, len(colours))
    labeller.unlabelled, labeller.grouped = unlabelled, grouped
    labeller.execute = recall.execute
    recall.rewind()
    runner = _Runner(program.module, labeller)
    with explicit_operators(), torch.no_grad():
        runner.run_labelled(inputs)
    return labeller, _facts(labeller, runner.values, colours)


def symmetry(grouping: Grouping, coupled: set[str]) -> Symmetry:
    """The public form of a grouping, its certificate still to come."""
    return Symmetry(
        groups=grouping.groups,
        frozen=grouping.frozen,
        certificate=UNTRIED,
        fixed=grouping.fixed,
        implicit=grouping.implicit,
        bundles=grouping.bundles,
        coupled=frozenset(coupled),
        layout=grouping.layout,
    )


def _one_example(program: Program) -> tuple[Tensor, ...]:
    """Labels don't depend on the batch: one example is enough where all inputs have a batch."""
    sizes = {t.shape[0] for t in program.inputs if t.dim() > 0}
    batched = len(sizes) == 1 and all(t.dim() > 1 for t in program.inputs)
    return tuple(t[:1] for t in program.inputs) if batched else program.inputs


class _Runner(fx.Interpreter):
    """Interprets the graph node by node under the labeller."""

    def __init__(self, module: fx.GraphModule, labeller: Labeller) -> None:
        super().__init__(module)
        self.labeller = labeller
        self.values: dict[str, Coordinates] = {}

    def run_labelled(self, inputs: tuple[Tensor, ...]) -> None:
        for key, tensor in self.module.state_dict(keep_vars=True).items():
            if not tensor.is_floating_point():
                continue  # tables of positions and counters: constants, the same in all sources
            self.labeller.parameter(key, tensor)
            if key.startswith("_tensor_constant"):
                for labels in self.labeller.of(tensor):
                    self.labeller.pin(labels, WRITTEN)
        for tensor in inputs:
            self.labeller.source(tensor)
        with self.labeller:
            self.run(*inputs)

    def run_node(self, n: fx.Node) -> Any:
        self.labeller.node = n.name
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.values[n.name] = self.labeller.of(result)
        if n.op == "output":
            self._pin_outputs(result)
        return result

    def call_module(
        self, target: fx.node.Target, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        with steps_of(*self.fetch_attr(str(target)).modules()) as recurrent:
            self.labeller.recurrent = recurrent
            result = super().call_module(target, args, kwargs)
        self.labeller.recurrent = False
        return result

    def _pin_outputs(self, result: Any) -> None:
        for tensor in tree_leaves(result):
            coordinates = self.labeller.of(tensor)
            for labels in coordinates:
                self.labeller.pin(labels, OUTPUT if len(coordinates) == 1 else OUTPUT_BESIDE)


class _Arrays:
    """One array for all tensors that are the same labels at the same place in memory."""

    def __init__(self) -> None:
        self.found: dict[tuple[object, ...], IntArray] = {}

    def of(self, labels: Tensor) -> IntArray:
        key = (labels.data_ptr(), labels.shape, labels.stride())
        return self.found.setdefault(key, labels.numpy())


def _facts(labeller: Labeller, values: Mapping[str, Coordinates], colours: Hash) -> Facts:
    ties = np.concatenate([NO_TIES, *labeller.ties], axis=1)
    kernels = [p.labels.numpy() for p in labeller.pins if p.kernel]
    axes = {axis: labels.numpy() for axis, labels in labeller.axes.items()}
    axes |= {axis: labels.numpy() for axis, labels in labeller.local.items()}
    arrays = _Arrays()
    return Facts(
        classes=components(labeller.count, ties),
        axes=axes,
        values={n: tuple(arrays.of(compact(c)) for c in own) for n, own in values.items()},
        nests=labeller.nests,
        pins=[(p.labels.numpy(), p.node, p.reason) for p in labeller.pins if not p.kernel],
        kernels=_flat(kernels),
        joined=_flat([labels.numpy() for labels in labeller.joined]),
        sites=list({id(c): c for c in map(arrays.of, labeller.sites)}.values()),
        colours=np.pad(colours, (0, labeller.count - len(colours))),
    )


def _flat(labels: Sequence[IntArray]) -> IntArray:
    """All of them in a row, without the mark of padding."""
    found = np.concatenate([np.zeros(0, np.int64), *(part.reshape(-1) for part in labels)])
    return found[found >= 0]
