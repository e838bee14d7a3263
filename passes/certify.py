"""Prove a symmetry by experiment: permuted networks compute the same function (oracle 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from passes._randomised import randomised, steadied
from pleas_fx.ir import Certificate, Frozen, Group, GroupId, Layout, Permutation, Program, Symmetry
from pleas_fx.module_tree import discard
from pleas_fx.permuting import (
    Moves,
    axis_moves,
    first_names,
    moved,
    moves_by_key,
    permuted_state,
    random_permutation,
)

TOLERANCE = 1e-9


def certify(program: Program, symmetry: Symmetry, *, trials: int, seed: int) -> Symmetry:
    """The symmetry with its certificate; groups that fail are frozen and named as culprits.

    Every affine parameter and statistic is drawn at random first, in float64: initial values
    (ones, zeros) would hide errors.
    """
    inputs = tuple(t.double() if t.is_floating_point() else t for t in program.inputs)
    model, reference = randomised(program.module, inputs, seed)
    draws = [random_permutation(symmetry, seed + t) for t in range(trials)]

    def error(permutation: Permutation) -> float:
        moves = moves_by_key(symmetry.layout, permutation)
        return relative_error(_Permuted(model, symmetry.layout, moves).outputs(inputs), reference)

    def worst() -> float:
        return max((error(draw) for draw in draws), default=0.0)

    largest = worst()
    if not largest < TOLERANCE:  # perhaps only rounding
        reference = steadied(model, inputs, reference, seed)
        largest = worst()
    culprits: tuple[GroupId, ...] = ()
    if not largest < TOLERANCE:
        culprits = _culprits(symmetry, draws, error)
        symmetry = _without(symmetry, culprits)
        draws = [random_permutation(symmetry, seed + t) for t in range(trials)]
        largest = worst()
    caught = _control(symmetry, model, inputs, reference, seed)
    discard(model)
    certificate = Certificate(
        max_error=largest,
        trials=trials,
        coverage=coverage(symmetry),
        passed=bool(largest < TOLERANCE) and caught,
        negative_control_caught=caught,
        culprits=culprits,
    )
    return replace(symmetry, certificate=certificate)


class _Permuted(fx.Interpreter):
    """Runs a network with its tensors permuted, each when it is read: never all of them at once."""

    def __init__(self, module: fx.GraphModule, layout: Layout, moves: Mapping[str, Moves]) -> None:
        super().__init__(module)
        self.extra_traceback = False  # it would be appended to our errors
        self.layout, self.moves = layout, moves
        self.first = first_names(module)

    def outputs(self, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        """All output tensors, in order."""
        with torch.no_grad():
            result = self.run(*(t.clone() for t in inputs))
        return [t for t in tree_leaves(result) if isinstance(t, Tensor)]

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A layer with other tensors in the place of some."""
        module = self.fetch_attr(target)
        named = (*module.named_parameters(), *module.named_buffers())
        state = {name: self._moved(f"{target}.{name}", tensor) for name, tensor in named}
        return functional_call(module, state, args, kwargs)

    def get_attr(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A tensor of the root."""
        value = self.fetch_attr(target)
        return self._moved(target, value) if isinstance(value, Tensor) else value

    def _moved(self, key: str, tensor: Tensor) -> Tensor:
        moves = self.moves.get(self.first.get(key, key))
        return tensor.detach() if moves is None else moved(tensor.detach(), moves, self.layout)


def _run(model: nn.Module, inputs: tuple[Tensor, ...], state: dict[str, Tensor]) -> list[Tensor]:
    """The outputs with other tensors in the place of some."""
    with torch.no_grad():
        result = functional_call(model, state, tuple(t.clone() for t in inputs))
    return [t for t in tree_leaves(result) if isinstance(t, Tensor)]


def relative_error(outputs: list[Tensor], reference: list[Tensor]) -> float:
    """Norm of the difference over the norm of the reference, the worst over all outputs."""
    worst = 0.0
    for a, b in zip(outputs, reference, strict=True):
        if b.numel():
            scale = b.double().norm().clamp_min(1e-30)
            worst = max(worst, float((a.double() - b.double()).norm() / scale))
    return worst if np.isfinite(worst) else float("inf")


def _culprits(
    symmetry: Symmetry, draws: list[Permutation], error: Callable[[Permutation], float]
) -> tuple[GroupId, ...]:
    """Groups (families as wholes) that change the function when they alone are permuted."""
    wrong: list[GroupId] = []
    for members in _families((*symmetry.groups, *symmetry.implicit)):
        parts = [Permutation({g.id: draw.order[g.id] for g in members}) for draw in draws]
        if not max(error(part) for part in parts) < TOLERANCE:
            wrong += [g.id for g in members]
    return tuple(wrong)


def _families(groups: tuple[Group, ...]) -> list[list[Group]]:
    families: dict[tuple[str, int], list[Group]] = {}
    for group in groups:
        key = ("family", group.blocks.family) if group.blocks else ("group", int(group.id))
        families.setdefault(key, []).append(group)
    return list(families.values())


def _without(symmetry: Symmetry, culprits: tuple[GroupId, ...]) -> Symmetry:
    wrong = tuple(g for g in symmetry.groups if g.id in culprits)
    reason = "failed its certificate: a bug in a rule, please report it"
    return replace(
        symmetry,
        groups=tuple(g for g in symmetry.groups if g.id not in culprits),
        implicit=tuple(g for g in symmetry.implicit if g.id not in culprits),
        fixed=symmetry.fixed + tuple(replace(g, blocks=None) for g in wrong),
        frozen=symmetry.frozen + tuple(Frozen(a, "", reason) for g in wrong for a in g.axes),
        bundles=(*symmetry.bundles, frozenset(g.id for g in wrong)),
    )


def _control(
    symmetry: Symmetry,
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    reference: list[Tensor],
    seed: int,
) -> bool:
    """A deliberately incomplete permutation (one axis of a group left out) must be noticed."""
    states = _broken(symmetry, model, seed)
    return any(relative_error(_run(model, inputs, s), reference) > TOLERANCE for s in states)


def _broken(symmetry: Symmetry, model: nn.Module, seed: int) -> Iterator[dict[str, Tensor]]:
    """Tensors permuted with one axis of a group left out, then with a single axis rolled."""
    rng = np.random.default_rng(seed)
    candidates = [g for g in symmetry.groups if g.size > 1 and len(g.axes) > 1]
    for k in rng.permutation(len(candidates))[:4]:
        group = candidates[int(k)]
        order = Permutation({group.id: np.roll(np.arange(group.size), 1)})
        for left_out in axis_moves(symmetry.layout, order):
            axes = {a: c for a, c in symmetry.layout.axes.items() if a != left_out}
            layout = replace(symmetry.layout, axes=axes)
            yield permuted_state(replace(symmetry, layout=layout), model, order)
    for axis, classes in list(symmetry.layout.axes.items())[:8]:
        if classes.ndim == 1:
            tensor = model.state_dict()[axis.key]
            yield {axis.key: tensor.roll(1, axis.dim)}


def coverage(symmetry: Symmetry) -> float:
    """Share of the entries of all channel axes of parameters that can move."""
    can_move = np.zeros(len(symmetry.layout.group) + 1, bool)
    for group in symmetry.groups:
        if group.size > 1:
            can_move[group.id] = True
    moving = total = 0.0
    for classes in symmetry.layout.axes.values():
        groups = symmetry.layout.group[classes]
        moving += float(np.where(groups >= 0, can_move[groups], False).mean() * classes.shape[-1])
        total += classes.shape[-1]
    return moving / total if total else 0.0
