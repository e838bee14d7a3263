"""Give a source the names of another: the same graph may hang in other modules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, fx, nn

from pleas_fx.errors import IncompatibleModelsError
from pleas_fx.ir import Program
from pleas_fx.module_tree import attach, attribute, container


@dataclass(frozen=True, slots=True)
class Align:
    """Options of the pass."""

    name: str = "align"

    def run(self, programs: Sequence[Program]) -> tuple[Program, ...]:
        return align(programs)


def align(programs: Sequence[Program]) -> tuple[Program, ...]:
    """All with the names of the first; what was compared, node by node, is the same graph.

    One may be part of a larger module, be wrapped, or have layers that do nothing in eval mode.

    Raises:
        IncompatibleModelsError: one uses the same layer in two places, where the other has two.
    """
    first, *others = programs
    return (first, *(_named(first, o, s) for s, o in enumerate(others, start=1)))


def _named(first: Program, other: Program, source: int) -> Program:
    pairs = list(zip(first.module.graph.nodes, other.module.graph.nodes, strict=True))
    if all((a.name, a.target) == (b.name, b.target) for a, b in pairs):
        return other
    paths: dict[str, str] = {}
    for a, b in pairs:
        if a.op not in ("call_module", "get_attr"):
            continue
        before = paths.setdefault(str(a.target), str(b.target))
        if before != str(b.target) and _own(attribute(other.module, before)):
            raise IncompatibleModelsError(
                f"source {source} has two layers, {paths[str(a.target)]} and {b.target}, where "
                f"source 0 has {a.target} twice"
            )
    root = nn.Module()
    values = {ours: attribute(other.module, theirs) for ours, theirs in paths.items()}
    for ours in sorted(paths, key=lambda path: isinstance(values[path], Tensor)):  # layers first
        _put(root, ours, other.module, paths[ours])
    module = fx.GraphModule(root, _renamed(pairs))
    shapes = {a.name: other.shapes[b.name] for a, b in pairs if b.name in other.shapes}
    return replace(other, module=module, shapes=shapes, modules=first.modules)


def _own(value: object) -> bool:
    """Whether it holds anything: what doesn't is the same wherever its options are."""
    return not isinstance(value, nn.Module) or bool(value.state_dict())


def _renamed(pairs: Sequence[tuple[fx.Node, fx.Node]]) -> fx.Graph:
    """The second nodes, whose sizes may be others, under the names of the first."""
    graph, made = fx.Graph(), dict[fx.Node, fx.Node]()
    for ours, theirs in pairs:
        args, kwargs = fx.node.map_arg((theirs.args, theirs.kwargs), made.__getitem__)
        made[theirs] = graph.create_node(ours.op, ours.target, args, kwargs, name=ours.name)
        made[theirs].meta = ours.meta.copy()
    return graph


def _put(root: nn.Module, path: str, owner: nn.Module, theirs: str) -> None:
    """The very layer, parameter or buffer, at another path."""
    value = attribute(owner, theirs)
    if isinstance(value, nn.Module):
        attach(root, path, value)
        return
    assert isinstance(value, Tensor)
    parent, _, leaf = path.rpartition(".")
    place = container(root, parent)
    if isinstance(value, nn.Parameter):
        place.register_parameter(leaf, value)
        return
    home, _, own = theirs.rpartition(".")
    constant = own in owner.get_submodule(home)._non_persistent_buffers_set
    place.register_buffer(leaf, value, persistent=not constant)
