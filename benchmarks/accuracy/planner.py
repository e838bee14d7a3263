"""How good the planner's forecasts and choices are: predicted against true error, and the gap.

python -m benchmarks.accuracy.planner [--folder F] [--data D] [--page]

True error: of the fitted outputs on test images, squared, relative to what the sources say there.
The gap: of the allocation to the optimum of a coarser menu, which an integer program finds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.accuracy import asked as common
from benchmarks.accuracy.asked import DOCS
from benchmarks.accuracy.evaluate import Tests, answers
from benchmarks.accuracy.optimum import optimum
from benchmarks.accuracy.page import table
from benchmarks.accuracy.scenarios import SCENARIOS
from benchmarks.accuracy.sources import calibration, given, sources
from benchmarks.accuracy.tasks import Store
from passes import plan as planning
from passes.plan import Constraints, menu
from pleas_fx import planning as menus
from pleas_fx.budget import Budget, cost_model
from pleas_fx.calibration import Batches, collect
from pleas_fx.compiler import compile_models
from pleas_fx.errors import PleasError
from pleas_fx.options import Decision, allocate
from pleas_fx.planning import look
from pleas_fx.prepare import prepare
from pleas_fx.request import Clock, Options

mpl.use("agg")
WHERE = ("same-task", "disjoint", "fine-tunes")
ARCHITECTURE = "resnet-narrow"
MENUS = {
    "mixtures": planning.PRICES,
    "singles only": planning.SINGLES_ONLY,
    "pairs only": planning.MERGED_ONLY,
}
BUDGETS = (0.25, 0.5, 0.75, 1.0, 1.2, 1.5)
COARSE = 10  # options a decision in the integer program
SECONDS = 60.0  # for one integer program


@dataclass(frozen=True, slots=True)
class Point:
    """One merge: what the planner expected of it, and what it was."""

    scenario: str
    menu: str
    budget: float
    predicted: float
    true: float


@dataclass(frozen=True, slots=True)
class Gap:
    """One allocation from a coarse menu, and the least total error there is."""

    scenario: str
    budget: float
    allocated: float
    optimum: float
    proven: bool


@dataclass(frozen=True, slots=True)
class Pair:
    """Sources, calibration and test images of a scenario's first seed."""

    scenario: str
    models: Sequence[nn.Module]
    data: Batches
    tests: Tests
    options: Options

    @property
    def example(self) -> tuple[Tensor, ...]:
        """Two images."""
        return (self.tests.inputs[0][:2],)


def pair(name: str, store: Store) -> Pair:
    """Of a scenario; every source takes part."""
    scenario = SCENARIOS[name]
    data = collect(given(scenario, calibration(scenario, 0, store)))
    models = sources(scenario, ARCHITECTURE, 0, store)
    options = Options(Budget(flops=1.0), scenario.heads, contest=False)
    return Pair(name, models, data, Tests(scenario, store), options)


# -- predicted and true errors ---------------------------------------------------------------------


def points(own: Pair) -> Iterator[Point]:
    """Every kind of menu at every budget that it can meet."""
    before = menus.MENUS
    for name, prices in MENUS.items():
        for size in BUDGETS:
            options = replace(own.options, budget=Budget(flops=size))
            try:
                menus.MENUS = {**before, "pleas": prices}
                found = compile_models(own.models, own.example, own.data, options, Clock())
            except PleasError:
                continue
            finally:
                menus.MENUS = before
            error = true_error(own, found.rewritten.module)
            yield Point(own.scenario, name, size, found.plan.predicted_error, error)


def true_error(own: Pair, merged: nn.Module) -> float:
    """Mean over the parts; with one output for all, against the mean of the sources."""
    found = []
    for k, x in enumerate(own.tests.inputs):
        outputs = answers(merged, x)
        each = [answers(model, x)[0] for model in own.models]
        shared = len(outputs) == 1
        wanted = torch.stack(each).mean(0) if shared else each[k]
        have = outputs[0] if shared else outputs[k]
        signal = (wanted - wanted.mean(0)).square().sum()
        found.append(float((have - wanted).square().sum() / signal))
    return sum(found) / len(found)


# -- the gap of the allocation ---------------------------------------------------------------------


def gaps(own: Pair) -> Iterator[Gap]:
    """The allocation against the optimum of the same coarse menu."""
    prepared = prepare(own.models, own.example, own.options, Clock())
    observed = look(prepared, own.data, own.options, Clock())
    constraints = Constraints(prepared.whole, prepared.given)
    full = menu(
        prepared.programs, prepared.symmetries, observed.statistics, observed.matching, constraints
    )
    decisions = [coarse(d) for d in full.decisions]
    model = cost_model(full, prepared.programs[0], prepared.symmetries[0], "flops")
    row = {g.id: k for k, g in enumerate(full.groups)}
    rows = [[row[g] for g in d.groups] for d in decisions]
    shape = (len(full.groups), len(full.memberships))
    for size in BUDGETS:
        choice, cost = allocate(decisions, model, rows, size, shape)
        if cost > size:
            continue
        errors = [[o.counted**2 for o in d.options] for d in decisions]
        allocated = sum(e[c] for e, c in zip(errors, choice, strict=True))
        least, proven = optimum(decisions, model, rows, size, shape, SECONDS)
        yield Gap(own.scenario, size, allocated, least, proven)


def coarse(decision: Decision) -> Decision:
    """Options spread over their number of slots, the fewest and the most among them."""
    order = sorted(decision.options, key=lambda o: (float(o.lanes.sum()), o.error))
    places = np.unique(np.linspace(0, len(order) - 1, COARSE).round().astype(int))
    return replace(decision, options=tuple(order[k] for k in places))


# -- the page --------------------------------------------------------------------------------------


def draw(found: Sequence[Point], path: Path) -> None:
    """A panel a scenario, predicted error to the right, true error upwards."""
    from matplotlib import pyplot
    from matplotlib.ticker import NullFormatter

    figure, axes = pyplot.subplots(1, len(WHERE), figsize=(3.1 * len(WHERE), 3.0))
    for axis, scenario in zip(axes, WHERE, strict=True):
        axis.set_title(SCENARIOS[scenario].title, fontsize=8)
        for name, marker, size in zip(MENUS, "os^", (7, 4, 4), strict=True):
            own = [p for p in found if (p.scenario, p.menu) == (scenario, name)]
            pairs = ([p.predicted for p in own], [p.true for p in own])
            axis.loglog(*pairs, marker, ms=size, alpha=0.6, label=name)
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlim(0.03, 4)
        axis.tick_params(labelsize=7)
    axes[0].set_ylabel("true relative error", fontsize=8)
    axes[0].legend(fontsize=7, frameon=False)
    figure.supxlabel("predicted error, sum over groups", fontsize=8)
    figure.tight_layout(pad=0.4)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None}, dpi=100)
    pyplot.close(figure)


def ranks(found: Sequence[Point]) -> float:
    """Spearman's correlation of predicted and true error."""
    sides = np.array([[p.predicted, p.true] for p in found]).T
    order = sides.argsort(1).argsort(1)
    return float(np.asarray(np.corrcoef(order))[0, 1])


def page(found: Sequence[Point], allocations: Sequence[Gap]) -> str:
    """Two tables and the picture."""
    rows = []
    for scenario in WHERE:
        own = [p for p in found if p.scenario == scenario]
        each = [[p for p in own if p.menu == name] for name in MENUS]
        rows.append([scenario, *(f"{ranks(p):.2f}" for p in (own, *each))])
    forecast = table(["scenario", "all", *MENUS], rows)
    least = [
        [
            *(g.scenario, f"{g.budget:g}x", f"{g.allocated:.4g}", f"{g.optimum:.4g}"),
            f"{100 * max(g.allocated / max(g.optimum, 1e-300) - 1, 0):.1f} %"
            + ("" if g.proven else " *"),
        ]
        for g in allocations
    ]
    heads = ["scenario", "executed FLOPs", "allocated", "optimum", "gap"]
    return (
        "# The planner's forecasts and its gap\n\n"
        f"Made by `python -m benchmarks.accuracy.planner` on {ARCHITECTURE}, first seed.\n\n"
        "![predicted and true errors](accuracy/planner.png)\n\n"
        "Rank correlation of predicted and true error (squared, relative, of the fitted outputs on "
        f"test images), over budgets from {BUDGETS[0]:g}x to {BUDGETS[-1]:g}x:\n\n{forecast}\n"
        f"The allocation from a menu of {COARSE} options a decision, against the optimum of an "
        "integer program over the same menu; sums of squared errors, which the planner minimises. "
        f"An asterisk: best within {SECONDS:g} seconds, not proven.\n\n{table(heads, least)}"
    )


def main() -> None:
    """Measure everything, or write the page again."""
    parser = common.parser(__doc__)
    parser.add_argument("--docs", type=Path, default=DOCS)
    parser.add_argument("--page", action="store_true", help="only write the page again")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    store = common.store(asked)
    path = asked.folder / "planner.json"
    if not asked.page:
        pairs = [pair(name, store) for name in WHERE]
        found = {
            "gaps": [asdict(g) for own in pairs for g in gaps(own)],
            "points": [asdict(p) for own in pairs for p in points(own)],
        }
        path.write_text(json.dumps(found))
    known = json.loads(path.read_text())
    measured = [Point(**p) for p in known["points"]]
    draw(measured, asked.docs / "accuracy" / "planner.png")
    (asked.docs / "planner.md").write_text(page(measured, [Gap(**g) for g in known["gaps"]]))


if __name__ == "__main__":
    main()
