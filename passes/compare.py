"""Check that all sources are the same graph; name the first place where they aren't."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from passes.trace import describe
from pleas_fx.errors import IncompatibleModelsError, SourceError
from pleas_fx.ir import Program
from pleas_fx.module_tree import attribute
from pleas_fx.rules.modules import contraction

STATISTICS = ("running_mean", "running_var")
IGNORED = ("training", "out_features", "out_channels", "inplace", "_is_full_backward_hook")
READ = tuple(
    "in_features in_channels num_features num_channels num_parameters normalized_shape".split()
)


def compare(programs: Sequence[Program], *, same_outputs: bool) -> None:
    """Compare node by node: operators, constants, layer options, shapes.

    With ``same_outputs`` False numbers of channels may differ, and sizes in the code behind them.

    Raises:
        IncompatibleModelsError: names the first difference.
        SourceError: a source has NaN or Inf among its weights, or infinite constants of its own.
    """
    for s, program in enumerate(programs):
        _require_finite(program, s)
        _require_equal_limits(programs[0], program, s)
    for s, other in enumerate(programs[1:], start=1):
        _compare_two(programs[0], other, s, same_outputs)


def _require_finite(program: Program, source: int) -> None:
    """Constants may be infinite (masks, limits); weights and statistics may not."""
    limits = _limits(program)
    module = program.module
    buffers = module.named_buffers(remove_duplicate=False)
    for key, tensor in (*module.named_parameters(remove_duplicate=False), *buffers):
        wrong = torch.isnan(tensor) if key in limits else ~torch.isfinite(tensor)
        if tensor.is_floating_point() and bool(wrong.any()):
            raise SourceError(f"source {source}: {key} holds NaN or Inf")


def _require_equal_limits(first: Program, program: Program, source: int) -> None:
    """Their mean has to be what each of them is."""
    one, two = _limits(first), _limits(program)
    for key in one | two:
        if key not in one or key not in two or not _same_limits(one[key], two[key]):
            raise SourceError(f"source {source}: {key} is infinite elsewhere than in source 0")


def _limits(program: Program) -> dict[str, Tensor]:
    """Buffers with infinite entries, but those of norms."""
    return {
        key: tensor
        for key, tensor in program.module.named_buffers(remove_duplicate=False)
        if tensor.is_floating_point()
        and not key.endswith(STATISTICS)
        and bool(torch.isinf(tensor).any())
    }


def _same_limits(one: Tensor, two: Tensor) -> bool:
    if one.shape != two.shape or not torch.equal(one.isinf(), two.isinf()):
        return False
    return torch.equal(one[one.isinf()], two[two.isinf()])


def _compare_two(first: Program, other: Program, number: int, same_outputs: bool) -> None:
    """Sizes may differ behind layers with other outputs."""
    a_nodes, b_nodes = list(first.module.graph.nodes), list(other.module.graph.nodes)
    names: dict[str, str] = {}
    resized: dict[fx.Node, tuple[fx.Node, str]] = {}  # and what made it so
    for a, b in zip(a_nodes, b_nodes, strict=False):
        names[b.name] = a.name
        layer = _is_layer(first, a)
        origin = next((resized[n] for n in a.all_input_nodes if n in resized), None)
        free = not same_outputs and (layer or origin is not None)
        reason = _difference(first, other, a, b, names, sizes=free, read=free and bool(origin))
        if reason is not None:
            raise _incompatible(number, *(origin or (a, reason)))
        reason = _shape_difference(first, other, a, b)
        if reason is not None and not free:
            raise _incompatible(number, a, reason)
        if reason is not None or (origin is not None and not layer):
            resized[a] = origin or (a, str(reason))
    if len(a_nodes) != len(b_nodes):
        raise IncompatibleModelsError(
            f"source {number} has {len(b_nodes)} operations, source 0 has {len(a_nodes)}"
        )


def _incompatible(number: int, node: fx.Node, reason: str) -> IncompatibleModelsError:
    return IncompatibleModelsError(
        f"source {number} differs from source 0 at {describe(node)}: {reason}"
    )


def _is_layer(program: Program, node: fx.Node) -> bool:
    if node.op != "call_module":
        return False
    return contraction(program.module.get_submodule(str(node.target))) is not None


def _difference(
    first: Program,
    other: Program,
    a: fx.Node,
    b: fx.Node,
    names: dict[str, str],
    *,
    sizes: bool,
    read: bool,
) -> str | None:
    """``sizes``: whether the result's may be others; ``read``: whether the operands' are."""
    if a.op != b.op:
        return f"{a.op} against {b.op}"
    if a.op == "call_module":
        one = first.module.get_submodule(str(a.target))
        two = other.module.get_submodule(str(b.target))
        if type(one) is not type(two):
            return f"{type(one).__name__} against {type(two).__name__}"
        alone = _tensors(one) ^ _tensors(two)
        if alone:
            return f"only one has a {min(alone)}"
        depthwise = _depthwise(one) and _depthwise(two)
        ignored = (*IGNORED, *READ, *(["groups"] if depthwise else [])) if read else IGNORED
        return _option_difference(one, two, ignored)
    if a.op.startswith("call") and str(a.target) != str(b.target):
        return f"{a.target} against {b.target}"
    if a.op == "get_attr" and _tables_differ(_table(first, a), _table(other, b)):
        return "a table of integers has other entries"
    one, two = _plain(a, {}), _plain(b, names)
    if a.op == "output" or (sizes and _same(_without_sizes(one), _without_sizes(two))):
        return None
    return None if _same(one, two) else f"arguments {one} against {two}"


def _same(one: Any, two: Any) -> bool:
    """Also where they hold a NaN, which isn't equal to itself."""
    return bool(one == two) or repr(one) == repr(two)


def _depthwise(layer: nn.Module) -> bool:
    return getattr(layer, "groups", 1) == getattr(layer, "in_channels", 0)


def _table(program: Program, node: fx.Node) -> Any:
    return attribute(program.module, str(node.target))


def _tables_differ(one: Any, two: Any) -> bool:
    """Positions in a table say what moves where: the analysis of one source is that of all."""
    if not (isinstance(one, Tensor) and isinstance(two, Tensor)):
        return False
    weights = one.is_floating_point() or one.is_complex()
    return not weights and not torch.equal(one, two)


def _plain(node: fx.Node, names: dict[str, str]) -> Any:
    return fx.node.map_arg((node.args, node.kwargs), lambda n: _Name(names.get(n.name, n.name)))


def _without_sizes(arguments: Any) -> Any:
    """Whole numbers left out, also those of slices."""
    if isinstance(arguments, slice):
        bounds = (arguments.start, arguments.stop, arguments.step)
        return (slice, *map(_without_sizes, bounds))
    if isinstance(arguments, (tuple, list)):
        return tuple(map(_without_sizes, arguments))
    if isinstance(arguments, dict):
        return {key: _without_sizes(value) for key, value in arguments.items()}
    return int if type(arguments) is int else arguments


def _tensors(layer: nn.Module) -> set[str]:
    return {key for key, tensor in layer.state_dict().items() if tensor.is_floating_point()}


class _Name(str):
    """A node's name inside its arguments: equal where the graphs are."""


def _option_difference(one: nn.Module, two: nn.Module, ignored: Sequence[str]) -> str | None:
    for name, value in vars(one).items():
        if name.startswith("_") or name in ignored:
            continue
        other = vars(two).get(name)
        if isinstance(value, (int, float, str, bool, tuple)) and not _same_option(value, other):
            return f"{name} is {value} against {other}"
    return None


def _same_option(one: Any, two: Any) -> bool:
    """One number stands for the same along every dim."""
    if isinstance(one, tuple) and isinstance(two, int):
        return set(one) == {two}
    if isinstance(one, int) and isinstance(two, tuple):
        return set(two) == {one}
    return bool(one == two)


def _shape_difference(first: Program, other: Program, a: fx.Node, b: fx.Node) -> str | None:
    one, two = first.shapes.get(a.name), other.shapes.get(b.name)
    if one != two:
        return f"shape {one} against {two}"
    return None
