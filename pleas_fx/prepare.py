"""The sources, analysed: what a merge knows before it sees a budget or data."""

from __future__ import annotations

import itertools
import operator
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from torch import Tensor, fx, nn

from passes.align import align
from passes.compare import compare
from passes.conform import conform
from passes.fold import fold
from passes.groups import Groups, groups
from passes.lower import lower
from passes.probe import probe
from passes.reorder import reorder
from passes.respell import respell
from passes.rewrite import Mismatch
from passes.trace import trace
from passes.verify import verify
from pleas_fx.errors import GraphError, IncompatibleModelsError, OptionError, TraceError
from pleas_fx.heads import given_lanes, output_groups
from pleas_fx.ir import GroupId, Lane, Program, Symmetry
from pleas_fx.request import Clock, Options

FOLDED = (
    "one source has no batch norms where another has them: they were folded into the layers before"
)


@dataclass(frozen=True, slots=True)
class Prepared:
    """The sources, analysed: everything that doesn't depend on a budget or on data."""

    programs: tuple[Program, ...]
    symmetries: tuple[Symmetry, ...]
    given: Mapping[GroupId, tuple[Lane, ...]]
    whole: tuple[frozenset[GroupId], ...]
    notes: tuple[str, ...] = ()  # for the report


def prepare(
    models: Sequence[nn.Module], inputs: tuple[Tensor, ...], options: Options, clock: Clock
) -> Prepared:
    """Trace, compare, analyse, and find out which widths the graph allows.

    Where a module's code can't be rewritten at any width, the module stays a single operator.

    Raises:
        TraceError, IncompatibleModelsError, SourceError, OptionError, GraphError
    """
    if len(models) < 2:
        raise OptionError(f"a merge needs at least two models, {len(models)} given")
    leaves: dict[str, str] = {}
    refused: Mismatch | None = None
    programs = _traced(models, inputs, leaves, clock)
    while True:
        try:
            prepared = _prepared(programs, inputs, options, clock)
        except Mismatch as refusal:
            refused = refusal
            with refusals(options.heads):
                leaves |= _stuck(models[0], programs[0], refusal, leaves)
                programs = _retraced(models, inputs, leaves, clock, refusal)
            continue
        except IncompatibleModelsError:
            if refused is None:
                raise
            with refusals(options.heads):  # as single operators they differ, but weren't the reason
                raise refused from None
        notes = (f"{path} stays a single operator: {why}" for path, why in leaves.items())
        return replace(prepared, notes=(*notes, *prepared.notes))


Programs = tuple[Program, ...]


def _traced(
    models: Sequence[nn.Module], inputs: tuple[Tensor, ...], leaves: Collection[str], clock: Clock
) -> Programs:
    with clock.time("trace"):
        programs = tuple(lower(trace(model, inputs, leaves=leaves)) for model in models)
    for number, program in enumerate(programs):
        if not program.general:
            raise TraceError(
                f"source {number} has a graph for batches of {len(inputs[0])} only: its code loops "
                "over the examples, or their number is written into it"
            )
    return programs


def _retraced(
    models: Sequence[nn.Module],
    inputs: tuple[Tensor, ...],
    leaves: Collection[str],
    clock: Clock,
    refusal: Mismatch,
) -> Programs:
    try:
        return _traced(models, inputs, leaves, clock)
    except TraceError:  # torch.export, say, knows no modules
        raise refusal from None


def _stuck(
    model: nn.Module, program: Program, refusal: Mismatch, leaves: Collection[str]
) -> dict[str, str]:
    """The module at a refusal, the next larger one if it is a leaf already, and all of its kind.

    What is refused in one of them would be in the next.

    Raises:
        Mismatch: there is none but the network itself.
    """
    modules = dict(model.named_modules())
    path = _home(program, refusal.node)
    while path in leaves:
        path = path.rpartition(".")[0]
    if not path or path not in modules:
        raise refusal
    kind = type(modules[path])
    return {name: refusal.why for name, module in modules.items() if type(module) is kind}


def _home(program: Program, node: str) -> str:
    """The path of a module whose code a node is; empty where that is the whole network.

    The owner of the parameter it reads, else what the layers next to it on both sides are part of.
    """
    found = next((n for n in program.module.graph.nodes if n.name == node), None)
    if found is None:
        return ""
    if found.op == "get_attr":
        return str(found.target).rpartition(".")[0]
    before = _nearest(found, lambda n: n.all_input_nodes)
    after = _nearest(found, lambda n: list(n.users))
    parts = [path.split(".")[:-1] for path in (before, after)]
    shared = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*parts, strict=False))
    return ".".join(own for own, _ in shared)


def _nearest(node: fx.Node, towards: Callable[[fx.Node], list[fx.Node]]) -> str:
    """The path of the first layer of the model's own in a direction."""
    waiting, seen = deque(towards(node)), {node}
    while waiting:
        near = waiting.popleft()
        if near.op == "call_module" and "." in str(near.target):
            return str(near.target)
        fresh = [n for n in towards(near) if n not in seen]
        seen.update(fresh)
        waiting += fresh
    return ""


def _prepared(
    programs: tuple[Program, ...], inputs: tuple[Tensor, ...], options: Options, clock: Clock
) -> Prepared:
    """Raises Mismatch where the graph can't be rewritten, not even whole."""
    with clock.time("trace"):
        programs, told = _even(programs, options)
    notes = list(told)
    with clock.time("groups"):
        symmetries = _symmetries(programs)
    with clock.time("probe"):
        given = given_lanes(programs, symmetries, options.heads, options.classes)
        whole = probe(programs, symmetries, given, heads=options.heads)
    with clock.time("verify"):
        apart = given_lanes(programs, symmetries, "separate", None)
        if not verify(programs, symmetries, apart, inputs) <= 1:
            raise GraphError(
                "side by side in one graph, the sources don't compute what they do alone: an "
                "operator is followed wrongly. Please report this network; until then, make the "
                "modules that rearrange channels leaves of the trace"
            )
    unequal = _unequal(symmetries) - output_groups(programs[0], symmetries[0])
    if unequal:
        notes.append(
            f"{len(unequal)} groups have other numbers of channels in other sources: they stay "
            "apart"
        )
    return Prepared(programs, symmetries, given, whole, tuple(notes))


def _even(programs: Programs, options: Options) -> tuple[Programs, tuple[str, ...]]:
    """The same graph under the same names; what was done to have that.

    Raises:
        IncompatibleModelsError: there is none, also where all that is written differently is
            written in one way.
    """
    try:
        return _matched(programs, options)
    except IncompatibleModelsError as refusal:
        try:
            spelled = tuple(map(respell, programs))
        except TraceError:
            raise refusal from None
    return _matched(spelled, options)


def _matched(programs: Programs, options: Options) -> tuple[Programs, tuple[str, ...]]:
    folded = fold(programs)
    told = (FOLDED,) if any(map(operator.is_not, folded, programs)) else ()
    even = conform([folded[0], *(reorder(folded[0], other) for other in folded[1:])])
    compare(even, same_outputs=options.heads == "shared")
    return align(even), told


@contextmanager
def refusals(heads: str) -> Iterator[None]:
    """A refusal that no wider set of groups settles is the user's to know."""
    try:
        yield
    except Mismatch as refusal:
        joint = ', or take heads="separate": outputs of boxes, say, can\'t be put side by side'
        raise GraphError(
            f"node {refusal.node} can't be rewritten ({refusal.why}); make the module that it "
            "comes from a leaf of the trace, or leave it out of the merge"
            f"{joint if heads == 'joint' else ''}"
        ) from refusal


def _symmetries(programs: Sequence[Program]) -> tuple[Symmetry, ...]:
    """One analysis, unless the sources' outputs differ in size."""
    first = Groups().run(programs[0])
    found = [first]
    for number, program in enumerate(programs[1:], start=1):
        if _sizes(program) == _sizes(programs[0]):
            found.append(first)
            continue
        own = groups(program)
        if _outline(own) != _outline(first):
            raise IncompatibleModelsError(
                f"source {number} has other permutation groups than source 0"
            )
        found.append(own)
    return tuple(_held(s, _unequal(found)) for s in found)


def _unequal(symmetries: Sequence[Symmetry]) -> frozenset[GroupId]:
    """Groups that have more channels in one source than in another."""
    sizes = [{g.id: g.size for g in (*s.groups, *s.fixed)} for s in symmetries]
    return frozenset(g for g, n in sizes[0].items() if any(own[g] != n for own in sizes))


def _held(symmetry: Symmetry, unequal: Collection[GroupId]) -> Symmetry:
    """The same with groups that stay as they are: nothing pairs channels of different numbers."""
    if not unequal:
        return symmetry
    still = [replace(g, blocks=None) for g in symmetry.groups if g.id in unequal]
    moving = tuple(g for g in symmetry.groups if g.id not in unequal)
    return replace(symmetry, groups=moving, fixed=(*symmetry.fixed, *still))


def _sizes(program: Program) -> dict[str, tuple[int, ...]]:
    return {key: tuple(t.shape) for key, t in program.module.state_dict().items()}


def _outline(symmetry: Symmetry) -> list[tuple[int, tuple[object, ...]]]:
    return [(g.id, g.axes) for g in (*symmetry.groups, *symmetry.fixed)]
