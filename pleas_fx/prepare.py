"""The sources, analysed: what a merge knows before it sees a budget or data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from passes.compare import compare
from passes.groups import Groups, groups
from passes.lower import lower
from passes.probe import probe
from passes.rewrite import Mismatch
from passes.trace import trace
from passes.verify import verify
from pleas_fx.errors import GraphError, IncompatibleModelsError, OptionError
from pleas_fx.heads import given_lanes
from pleas_fx.ir import GroupId, Lane, Program, Symmetry
from pleas_fx.request import Clock, Options


@dataclass(frozen=True, slots=True)
class Prepared:
    """The sources, analysed: everything that doesn't depend on a budget or on data."""

    programs: tuple[Program, ...]
    symmetries: tuple[Symmetry, ...]
    given: Mapping[GroupId, tuple[Lane, ...]]
    whole: tuple[frozenset[GroupId], ...]


def prepare(
    models: Sequence[nn.Module], inputs: tuple[Tensor, ...], options: Options, clock: Clock
) -> Prepared:
    """Trace, compare, analyse, and find out which widths the graph allows.

    Raises:
        TraceError, IncompatibleModelsError, SourceError, OptionError, GraphError
    """
    if len(models) < 2:
        raise OptionError(f"a merge needs at least two models, {len(models)} given")
    with clock.time("trace"):
        programs = tuple(lower(trace(model, inputs)) for model in models)
        compare(programs, same_outputs=options.heads == "shared")
    with clock.time("groups"):
        symmetries = _symmetries(programs)
    with clock.time("probe"), refusals():
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
    return Prepared(programs, symmetries, given, whole)


@contextmanager
def refusals() -> Iterator[None]:
    """A refusal that no wider set of groups settles is the user's to know."""
    try:
        yield
    except Mismatch as refusal:
        raise GraphError(
            f"node {refusal.node} can't be rewritten ({refusal.why}); make the module that it "
            "comes from a leaf of the trace, or leave it out of the merge"
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
    return tuple(found)


def _sizes(program: Program) -> dict[str, tuple[int, ...]]:
    return {key: tuple(t.shape) for key, t in program.module.state_dict().items()}


def _outline(symmetry: Symmetry) -> list[tuple[int, tuple[object, ...]]]:
    return [(g.id, g.axes) for g in (*symmetry.groups, *symmetry.fixed)]
