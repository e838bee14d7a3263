"""The document that the records become."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.accuracy.architectures import ARCHITECTURES
from benchmarks.accuracy.methods import METHODS, REFERENCES
from benchmarks.accuracy.plots import draw
from benchmarks.accuracy.records import FIRST, Record, Records
from benchmarks.accuracy.scenarios import MAIN, SCENARIOS
from benchmarks.accuracy.summary import DEFAULT, Cells, Loss, ahead, cells, losses, means

BUDGETS = (0.5, 1.0, 1.2)
HEAD = """# How accurate a merge is

Made by `make accuracy` from `docs/accuracy.json`: small networks on public image sets, merged
without labels and without training. Accuracy in percent, the mean over a scenario's parts and
over seeds, ± the standard deviation over seeds where there are several. FLOPs are what the emitted
graph executes, relative to one source. References (own, best source, ensembles, all labels) are no
merges: the ensemble executes as many times one source as there are sources.
"""


def write(records: Records, docs: Path) -> None:
    """The records as JSON, a record a line, the tables and the plots."""
    docs.mkdir(parents=True, exist_ok=True)
    ordered = sorted(
        records, key=lambda r: (r.scenario, r.architecture, r.seed, r.method, r.budget)
    )
    lines = ",\n".join(json.dumps(_compact(r, records.version(r.method))) for r in ordered)
    (docs / "accuracy.json").write_text(f"[\n{lines}\n]\n")
    found = cells(ordered)
    pictures = draw(found, docs / "accuracy")
    (docs / "accuracy.md").write_text(page(found, pictures))


def _compact(record: Record, version: int) -> dict[str, object]:
    """Without what differs from machine to machine, and with null for what isn't known."""
    known = {k: v for k, v in asdict(record).items() if k != "seconds"}
    known |= {"version": version} if version != FIRST else {}
    return {k: None if v != v else v for k, v in known.items() if v != ""}


def page(found: Cells, pictures: Sequence[str]) -> str:
    """All tables."""
    parts = [HEAD, _averages(found), _paired(found), _losses(losses(found))]
    parts += [f"![{name}](accuracy/{name})\n" for name in pictures]
    for architecture in ARCHITECTURES:
        parts += _of_architecture(found, architecture)
    return "\n".join(part for part in parts if part)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _averages(found: Cells) -> str:
    rows = []
    at = {budget: means(found, MAIN, budget) for budget in BUDGETS}
    names = {**{m: METHODS[m].title for m in METHODS}, **REFERENCES}
    for method, title in names.items():
        row = [at[b].get(method) for b in at]
        if any(row):
            texts = [f"{100 * r[0]:.1f} ({r[1]})" if r else "-" for r in row]
            rows.append([title, *texts])
    return (
        "## Averages over the main scenarios\n\nIn brackets: settings averaged over.\n\n"
        + table(["method", *(f"{b:g}x FLOPs" for b in at)], rows)
    )


def _paired(found: Cells) -> str:
    rows = []
    for method in (*METHODS, *REFERENCES):
        row = [ahead(found, MAIN, method, budget) for budget in BUDGETS]
        if method != DEFAULT and any(count for _, count in row):
            rows.append([_title(method), *(f"{100 * d:+.1f} ({n})" if n else "-" for d, n in row)])
    return (
        "## Points that the default is ahead\n\nThe mean over the main settings and seeds that both"
        " have; in brackets: settings. References are compared at any budget.\n\n"
        + table(["method", *(f"{b:g}x FLOPs" for b in BUDGETS)], rows)
    )


def _losses(found: Sequence[Loss]) -> str:
    real = [loss for loss in found if loss.margin > 2 * loss.noise]
    text = (
        "## Where the default loses\n\n"
        f"Settings and budgets in which a rival with no more FLOPs is better: {len(found)}, "
        f"of which beyond two standard errors: {len(real)}.\n\n"
    )
    rows = [
        [
            f"{s}, {a}, {b:g}x",
            _title(m),
            f"{100 * loss.margin:.1f}",
            f"{100 * loss.noise:.1f}",
        ]
        for loss in found[:25]
        for s, a, m, b in [loss.where]
    ]
    head = ["setting", "best rival", "points ahead", "one standard error"]
    return text + (table(head, rows) if rows else "")


def _of_architecture(found: Cells, architecture: str) -> list[str]:
    own = {(s, m, b): c for (s, a, m, b), c in found.items() if a == architecture}
    if not own:
        return []
    merges = sorted(
        {(m, b) for _, m, b in own if m in METHODS}, key=lambda mb: (list(METHODS).index(mb[0]), mb)
    )
    refs = [(r, 0.0) for r in REFERENCES if any(m == r for _, m, _ in own)]
    parts = [f"## {architecture}\n"]
    for title, columns in (
        ("At 1.0x FLOPs", [mb for mb in merges if mb[1] == 1.0]),
        ("At other budgets", [mb for mb in merges if mb[1] in (0.5, 1.2)]),
        ("References", refs),
    ):
        rows = []
        for name, scenario in SCENARIOS.items():
            texts = [str(own.get((name, *column), "-")) for column in columns]
            if any(text != "-" for text in texts):
                rows.append([f"{name}: {scenario.title}", *texts])
        heads = [_title(m) + ("" if b in (0.0, 1.0) else f" {b:g}x") for m, b in columns]
        if rows:
            parts.append(f"### {title}\n\n" + table(["scenario", *heads], rows))
    return parts


def _title(method: str) -> str:
    return METHODS[method].title if method in METHODS else REFERENCES[method]
