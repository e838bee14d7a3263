"""One thing changed at a time: what each choice of the default is worth.

python -m benchmarks.accuracy.ablations [--folder F] [--only PATTERN ...] [--seeds N]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from benchmarks.accuracy import asked as common
from benchmarks.accuracy.asked import DOCS
from benchmarks.accuracy.evaluate import Tests
from benchmarks.accuracy.measure import Case, Setting, evaluated, refused, settle
from benchmarks.accuracy.page import table
from benchmarks.accuracy.records import Record, Records
from benchmarks.accuracy.scenarios import ORIGINS, SCENARIOS
from benchmarks.accuracy.sources import calibration, fingerprint, given, sources
from benchmarks.accuracy.summary import cells
from benchmarks.accuracy.tasks import Store
from passes import _answers, _problems, _targets, plan
from passes import fit as fitting
from passes._rows import Rows, mean_rows
from passes.match import match_weights
from passes.rewrite import Rewritten, Site, rewrite
from pleas_fx import budget, candidates, compiler, contest, planning, settling
from pleas_fx import options as weighing
from pleas_fx.algebra import links
from pleas_fx.budget import Budget
from pleas_fx.calibration import collect
from pleas_fx.compiler import compile_models
from pleas_fx.errors import PleasError
from pleas_fx.extract import Runner
from pleas_fx.heads import given_lanes
from pleas_fx.ir import Lane, Matching, Plan, everyone
from pleas_fx.prepare import Prepared
from pleas_fx.request import Clock, Options
from pleas_fx.unfold import rows_at

Change = Callable[[Options], Options]
SETTINGS = (
    *(("same-task", b) for b in (0.5, 1.0)),
    *(("disjoint", b) for b in (0.5, 1.0)),
    *(("fine-tunes", b) for b in (0.5, 1.0)),
    *(("domains", b) for b in (0.5, 1.0)),
    *(("four-domains", b) for b in (0.5, 1.0)),
    ("disjoint-64", 1.0),
    *(("disjoint-joint", b) for b in (0.5, 1.0)),
    *(("overlapping", b) for b in (0.5, 1.0)),
    *(("three-digits", b) for b in (0.5, 1.0)),
    *(("data-sets", b) for b in (0.5, 1.0)),
    *(("disjoint-joint-untagged", b) for b in (0.5, 1.0, 1.2)),
)
ARCHITECTURE = "resnet-narrow"
NOT_VARIED = """
Not varied, since it can't matter: a second sweep of the fit (what a layer reads is made by layers
fitted before it, so a second walk solves the same systems again), and where the statistics of batch
norms behind a layer come from (both are solved for as one affine map, whatever the statistics).
Nor can matching again after fitting: on independent sources the default pairs no channels but those
of inputs and outputs, and fine-tunes match as they lie. Where everything is merged, each source's
channels match just those channels of the merged network that were made of them
(`python -m benchmarks.accuracy.rematched`: no pair changes).
"""
OUT_OF_REACH = """
## What stops the figures that are out of reach

- One output for classes of several sources, three kinds of digits in one source's FLOPs: that
  layers are fitted for their own sake. The same channels, trained together on the same images
  without labels by what the outputs lack, are within 3 points; no objective of single layers or
  blocks is ([decision](decisions/2026-12-01-distil.md)). That is training: `distil=`, not the
  default.
- 64 images in place of 1,024 at half a source: more rows of these images, another ridge, and more
  inputs made beside them change nothing beyond noise ([findings](accuracy-findings.md), "Few
  images"). Training loses.
- Images of another kind: which source is right on the images that will come, nothing tells
  ([decision](decisions/2026-12-01-blind.md)).
"""


@dataclass(frozen=True, slots=True)
class Variation:
    """An option, or a constant of a module or class, that differs from the default."""

    name: str
    title: str
    change: Change = lambda options: options
    module: Any = None
    constant: str = ""
    value: Any = None

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The constant has its other value inside."""
        if self.module is None:
            yield
            return
        before = getattr(self.module, self.constant)
        setattr(self.module, self.constant, self.value)
        try:
            yield
        finally:
            setattr(self.module, self.constant, before)


def _option(name: str, title: str, **changes: Any) -> Variation:
    return Variation(name, title, lambda options: replace(options, **changes))


def _prices(name: str, title: str, *prices: tuple[float, float]) -> Variation:
    menus = {**planning.MENUS, "pleas": prices}
    return Variation(name, title, module=planning, constant="MENUS", value=menus)


def _constant(name: str, title: str, module: Any, constant: str, value: float) -> Variation:
    """``title``: with a place for the value."""
    return Variation(
        f"{name}-{value:g}",
        f"{title.format(f'{value:g}')} (default {getattr(module, constant):g})",
        module=module,
        constant=constant,
        value=value,
    )


def _spread(value: float) -> Variation:
    """As in the default otherwise: contested."""
    return Variation(
        f"spread-{value:g}",
        f"plans contested, 16 weights of groups, spread {value:g} (default {contest.SPREAD:g})",
        lambda options: replace(options, contest=True, trials=16),
        module=contest,
        constant="SPREAD",
        value=value,
    )


def _judged(name: str, title: str, module: Any, constant: str, value: Any) -> Variation:
    """As the default, which judges candidates and contests plans."""
    return Variation(
        name,
        f"candidates judged, plans contested, {title}",
        lambda options: replace(options, contest=True),
        module=module,
        constant=constant,
        value=value,
    )


def singles(sources: int, attempt: Callable[[Sequence[int]], list[Any]]) -> list[Any]:
    """Candidates of one source each."""
    return [tried for source in range(sources) for tried in attempt((source,))]


def _on_weights() -> Variation:
    """Nothing is read off the activations but widths."""

    def matching(prepared: Prepared, *_: object) -> Matching:
        return match_weights(prepared.programs, prepared.symmetries[0])

    return Variation(
        "match-weights",
        "matched on weights",
        module=planning,
        constant="_matching",
        value=matching,
    )


class DenseEmitter(budget._Emitter):
    """The same slots, and all weights between them, until the budget is met."""

    def __call__(self, found: Plan) -> Rewritten:
        """One lane a group, but the outputs' own."""
        given = given_lanes(self.programs, self.symmetries, self.heads, None)
        lanes = {
            g.group: g.lanes
            if g.group in given
            else (Lane(everyone(g.sources), np.concatenate([n.channels for n in g.lanes])),)
            for g in found.groups
        }
        return rewrite(self.programs, self.symmetries, lanes, heads=self.heads)


_BATCHES, _TARGETS = Rows.batches, Rows.targets


def own_batches(rows: Rows, site: Site) -> tuple[int, ...]:
    """In hidden layers too, where it is known whose images they are."""
    if site.taught is not None:
        return _BATCHES(rows, site)
    own = [s for s in range(len(rows.programs)) if site.membership == 1 << s]
    known = [k for k, owner in enumerate(rows.settings.owners) if owner in own]
    return tuple(known) or _BATCHES(rows, site)


def residual_targets(rows: Rows, sites: Any, batch: int, count: int) -> list[Tensor]:
    """A branch also makes up for the error of the skip path that it is added to."""
    found = _TARGETS(rows, sites, batch, count)
    name = sites[0].node
    skip = _added(next(n for n in rows.programs[0].module.graph.nodes if n.name == name))
    if skip is None:
        return found
    at, channel = rows.kept.at(name, batch, count), rows.kept.places[name].channel

    def sampled(value: Tensor) -> Tensor:
        return rows_at(value.movedim(channel, -1), 1, at)

    values = [sampled(_made(rows, s, skip.name, batch)) for s in range(len(rows.programs))]
    for k, site in enumerate(sites):
        other = _added(rows.merged.nodes[site.emitted])
        if other is not None:
            have = sampled(rows.merged.value(other.name, batch))
            found[k] = found[k] + mean_rows(values, site.rows) - have
    return found


def _made(rows: Rows, source: int, name: str, batch: int) -> Tensor:
    """A value of a source: the whole of it, so the source runs again."""
    values: dict[str, Any] = {}
    module = rows.programs[source].module
    run = Runner(module, lambda node, value: values.update({node.name: value}))
    with torch.inference_mode():
        run.run(*rows.merged.batches[batch])
    found: Tensor = values[name]
    return found


def _added(node: fx.Node) -> fx.Node | None:
    """What a value is added to, where that is there before it."""
    users = list(node.users)
    if len(users) != 1 or getattr(users[0].target, "__name__", "") not in ("add", "iadd"):
        return None
    others = [n for n in users[0].all_input_nodes if n is not node]
    return others[0] if len(others) == 1 and others[0] < node else None


_ALL = (
    Variation("default", "all sources take part"),
    _option("contest", "candidates judged, plans contested (the default)", contest=True),
    _option("one-plan", "candidates judged, one plan", contest=True, trials=0),
    *(
        _option(
            f"trials-{n}",
            f"plans contested, {n} weights of groups (default 0)",
            contest=True,
            trials=n,
        )
        for n in (16, 64)
    ),
    *(_spread(v) for v in (0.4, 1.6)),
    _judged(
        "nobodys",
        "images without an owner stay nobody's",
        compiler,
        "attributed",
        lambda _, data, *__: (data, ()),
    ),
    _judged("untaught", "outputs never taught", settling, "taught_by_all", lambda *_: ()),
    _judged("singles", "all sources or one", candidates, "_grown", singles),
    *(_option(f"ridge-{r:g}", f"ridge {r:g} (default 1e-4)", ridge=r) for r in (1e-6, 1e-2, 1e-1)),
    *(
        _option(f"rows-{n}", f"{n} rows an unknown (default 8)", rows_per_unknown=n)
        for n in (2, 32, 128)
    ),
    *(
        _constant("shrinkage", "planner's shrinkage {}", _problems, "SHRINKAGE", v)
        for v in (0.0, 0.02, 0.5, 1.0)
    ),
    *(
        _constant("doubt", "merged slots count {} more than predicted", weighing, "DOUBT", v)
        for v in (0.0, 0.5, 1.0)
    ),
    _prices("merged-only", "merging only (pairs or nothing)", (1.0, math.inf)),
    _prices("no-mixtures", "all pairs or all singles a group", (math.inf, 1.0), (1.0, math.inf)),
    _prices("cheap-merging", "merging at a third of its price", (0.33, 1.0), *plan.PRICES),
    _on_weights(),
    Variation(
        "dense",
        "dense emission (every slot reads all)",
        module=budget,
        constant="_Emitter",
        value=DenseEmitter,
    ),
    Variation(
        "own-images",
        "a source's own channels fitted on its own images",
        module=Rows,
        constant="batches",
        value=own_batches,
    ),
    Variation(
        "residual",
        "targets with the skip path's error added",
        module=Rows,
        constant="targets",
        value=residual_targets,
    ),
    *(
        _constant("owner", "outputs: {} of the owner's, else the mean's", _targets, "OWNER", v)
        for v in (1.0, 0.75, 0.25, 0.0)
    ),
    *(
        _constant("links", "steps to what activations pass on: {}", links, "STEPS", v)
        for v in (0, 2, 32)
    ),
    *(
        _constant("unusual", "rows: {} of them drawn by their distance", _targets, "UNUSUAL", v)
        for v in (0.0, 1.0)
    ),
    Variation(
        "values",
        "outputs by least squares alone",
        module=fitting,
        constant="answer",
        value=lambda *_: {},
    ),
    *(
        _constant("start", "the least squares count as {} images", _answers, "WEIGHT", v)
        for v in (0.2, 20.0, 200.0)
    ),
)
VARIATIONS = {variation.name: variation for variation in _ALL}


def measure(case: Case, store: Store) -> Record:
    """The default with one thing changed; the budget is of FLOPs."""
    scenario, setting = SCENARIOS[case.setting.scenario], case.setting
    models = sources(scenario, setting.architecture, setting.seed, store)
    return replace(_varied(case, models, store), sources=fingerprint(models))


def _varied(case: Case, models: Sequence[nn.Module], store: Store) -> Record:
    scenario, setting = SCENARIOS[case.setting.scenario], case.setting
    tests = Tests(scenario, store)
    data = collect(given(scenario, calibration(scenario, setting.seed, store)))
    variation = VARIATIONS[case.method]
    joint = scenario.heads == "joint"
    classes = [part.labels for part in scenario.parts] if joint else None
    size = Budget(flops=case.budget)
    options = variation.change(
        Options(size, scenario.heads, classes, seed=setting.seed, contest=False)
    )
    try:
        with variation.applied():
            compiled = compile_models(models, (tests.inputs[0][:2],), data, options, Clock())
    except PleasError as error:
        return refused(case, error)
    note = (
        f"predicted {compiled.plan.predicted_error:.4g}; {merged_share(compiled.plan):.3f} merged"
    )
    return evaluated(case, compiled.rewritten.module, models, tests, note=note)


def merged_share(found: Plan) -> float:
    """Merged slots as a share of all slots."""
    return sum(len(g.merged) for g in found.groups) / max(sum(g.slots for g in found.groups), 1)


def page(records: Sequence[Record], architecture: str = ARCHITECTURE) -> str:
    """A table: a row a variation, a column a setting."""
    found = cells(records)
    settings = [s for s in SETTINGS if (s[0], architecture, "default", s[1]) in found]
    rows = []
    for name, variation in VARIATIONS.items():
        own = [found.get((s, architecture, name, b)) for s, b in settings]
        if any(own):
            rows.append([variation.title, *("-" if c is None else str(c) for c in own)])
    head = ["changed", *(f"{s} {b:g}x" for s, b in settings)]
    return (
        "# Ablations\n\nThe default with one thing changed, at equal executed FLOPs; accuracy in "
        f"percent on {architecture}, first seed, images as in [accuracy.md](accuracy.md); sources "
        "differ with the processor that they were trained on. All rows "
        "but the second to tenth keep all sources and one plan, and differ in one thing. Made by "
        "`python -m benchmarks.accuracy.ablations`.\n\n"
        + table(head, rows)
        + NOT_VARIED
        + OUT_OF_REACH
    )


def main() -> None:
    """Measure what is missing, write docs/ablations.md."""
    parser = common.parser(__doc__)
    parser.add_argument("--docs", type=Path, default=DOCS)
    parser.add_argument("--only", nargs="+", default=["*"], help="of scenario/variation")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--architecture", default=ARCHITECTURE, help="others are only printed")
    parser.add_argument("--page", action="store_true", help="only write the page again")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    store = common.store(asked)
    records = Records(asked.folder / "ablations.jsonl", origins=ORIGINS)
    patterns = [] if asked.page else asked.only
    wanted = [c for p in patterns for c in _cases(p, asked.architecture, asked.seeds)]
    settle(wanted, records, store)
    for case in wanted:
        if case not in records:
            record = measure(case, store)
            records.add(case, [record])
            print(record, flush=True)
    if asked.architecture == ARCHITECTURE:
        (asked.docs / "ablations.md").write_text(page(list(records)))
    else:
        print(page(list(records), asked.architecture))


def _cases(pattern: str, architecture: str, seeds: int) -> Iterator[Case]:
    for seed in range(seeds):
        for scenario, size in SETTINGS:
            for name in VARIATIONS:
                if fnmatch(f"{scenario}/{name}", pattern):
                    yield Case(Setting(scenario, architecture, seed), name, size)


if __name__ == "__main__":
    main()
