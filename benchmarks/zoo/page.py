"""The document that the zoo's records become."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from passes.export import ROUNDINGS

Fields = dict[str, Any]

EXACT, SINGLE, FLOPS = 1e-9, 1e-4, 2.02

INTRODUCTION = """# Coverage

Written by `make zoo` (`benchmarks/zoo`); figures in full, with times and memory, in
[coverage.json](coverage.json). Each network is measured in its own process: two sources with
random weights, every affine parameter and statistic drawn at random, inputs as small as the
network takes, eight random calibration examples.

- **certificate**: largest relative error in float64 over two random permutations of all groups
- **coverage**: share of the entries of all channel axes of weights that may move; positions in a
  kernel or in a table aren't channels
- **planted**: relative error (float32, new inputs) of the merge with a permuted copy at width 1.0
- **ensemble**: the same at width 2.0 against both sources, and executed FLOPs over one source's
- **1.25**: executed FLOPs of a merge asked to take at most 1.25 times one source's, and how far
  ONNX Runtime lies from it
- **analysis**: the group analysis, in forward passes of two examples; below a second it may take
  more than three
- **s**: seconds of one processor, and how much memory was used at most
"""


def page(records: Sequence[Fields], total: int) -> str:
    """The whole document."""
    return "\n".join(
        [
            INTRODUCTION,
            *_summary(records, total),
            *_section("Not as it should be", _failures(records)),
            *_section("What holds weight axes in place", _frozen(records)),
            *_section("Networks", _table(records)),
        ]
    )


def _section(title: str, lines: list[str]) -> list[str]:
    return [f"## {title}", "", *(lines or ["Nothing."]), ""]


# -- summary -----------------------------------------------------------------------------------


def certified(record: Fields) -> bool:
    """The certificate passed and nothing had to be frozen for it."""
    certificate = record.get("certificate")
    return bool(certificate and certificate["passed"] and not certificate["culprits"])


def wrong(record: Fields) -> bool:
    """Groups were found that aren't symmetries."""
    certificate = record.get("certificate")
    return bool(certificate and (certificate["culprits"] or certificate["max_error"] >= EXACT))


def merged(record: Fields) -> bool:
    """The merges were tried, not only the analysis."""
    return "planted" in record["seconds"]


def _below(key: str, bound: float) -> Callable[[Fields], bool]:
    return lambda record: record.get(key) is not None and record[key] <= bound


def agrees(record: Fields) -> bool:
    """ONNX Runtime is as near as the network's float32 is to its float64, times a few."""
    bound = max(SINGLE, ROUNDINGS * (record.get("onnx_rounding") or 0.0))
    return _below("onnx_error", bound)(record)


def prompt(record: Fields) -> bool:
    """The group analysis takes at most three forward passes of two examples and a second."""
    seconds = record["seconds"]
    return bool("groups" in seconds and seconds["groups"] <= 3 * seconds["forward"] + 1)


CHECKS: tuple[tuple[str, Callable[[Fields], bool]], ...] = (
    ("certified", certified),
    ("analysis within three forward passes and a second", prompt),
    ("merges tried", merged),
    ("planted permutation recovered to 1e-4", _below("planted_error", SINGLE)),
    ("exact ensemble to 1e-4", _below("ensemble_error", SINGLE)),
    ("ensemble within 2.02 times the FLOPs", _below("ensemble_flops", FLOPS)),
    ("merged within 1.25 times the FLOPs", _below("merge_flops", 1.25)),
    ("ONNX Runtime agrees to 1e-4, or as the network with itself", agrees),
)


def _summary(records: Sequence[Fields], total: int) -> list[str]:
    kinds = sorted({_kind(r) for r in records})
    lines = [
        f"{len(records)} of {total} networks analysed, {sum(map(merged, records))} merges tried; "
        f"wrong groups in {sum(map(wrong, records))}. `make zoo` goes on with the rest; what "
        "only the merges can show is not known for networks that were only analysed.",
        "",
        "| | all | " + " | ".join(kinds) + " |",
        "|---|" + "---|" * (len(kinds) + 1),
        _row("analysed", [len(records), *(len(_of(records, k)) for k in kinds)]),
    ]
    for label, check in CHECKS:
        counts = [sum(map(check, part)) for part in (records, *(_of(records, k) for k in kinds))]
        lines.append(_row(label, counts))
    means = [_mean_coverage(part) for part in (records, *(_of(records, k) for k in kinds))]
    return [*lines, _row("mean coverage", means), ""]


def _kind(record: Fields) -> str:
    return str(record["name"]).partition(":")[0]


def _of(records: Sequence[Fields], kind: str) -> list[Fields]:
    return [r for r in records if _kind(r) == kind]


def _mean_coverage(records: Sequence[Fields]) -> str:
    found = [r["certificate"]["coverage"] for r in records if r.get("certificate")]
    return f"{sum(found) / len(found):.3f}" if found else "-"


def _row(label: str, cells: Sequence[object]) -> str:
    return f"| {label} | " + " | ".join(str(c) for c in cells) + " |"


# -- failures ----------------------------------------------------------------------------------


def _failures(records: Sequence[Fields]) -> list[str]:
    found = [(r["name"], text) for r in records for text in _faults(r)]
    if not found:
        return []
    rows = [f"| {name} | {_cell(text)} |" for name, text in found]
    return ["| network | what |", "|---|---|", *rows]


def _faults(record: Fields) -> list[str]:
    done = record["status"] in ("finished", "analysed")
    faults = [] if done else [f"stopped: {record['status']}"]
    faults += [f"{step}: {text}" for step, text in record["errors"].items()]
    certificate = record.get("certificate")
    if certificate and certificate["culprits"]:
        faults.append(f"certificate froze {len(certificate['culprits'])} wrong groups")
    elif certificate and not certificate["negative_control_caught"]:
        faults.append("certificate: exchanging two channels changed no output")
    elif certificate and not certificate["passed"]:
        faults.append(f"certificate failed, error {certificate['max_error']:.1e}")
    if certificate and not prompt(record):
        took, forward = (record["seconds"][step] for step in ("groups", "forward"))
        faults.append(f"groups took {took:.1f} s, a forward pass {forward:.2f} s")
    bounds = (("planted_error", SINGLE), ("ensemble_error", SINGLE), ("ensemble_flops", FLOPS))
    for key, bound in (*bounds, ("merge_flops", 1.25)):
        value = record.get(key)
        if value is not None and not value <= bound:
            faults.append(f"{key.replace('_', ' ')} {value:.3g}, at most {bound:g} wanted")
    return faults


def _cell(text: object) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")[:300]


# -- frozen axes and the table -----------------------------------------------------------------


def _frozen(records: Sequence[Fields]) -> list[str]:
    axes: Counter[tuple[str, str]] = Counter()
    networks: Counter[tuple[str, str]] = Counter()
    for record in records:
        for entry in record.get("frozen", ()):
            key = (entry["operator"], entry["reason"])
            axes[key] += entry["axes"]
            networks[key] += 1
    rows = [_row(_cell(op), [_cell(why), networks[op, why], n]) for (op, why), n in axes.items()]
    rows.sort(key=lambda row: -int(row.split("|")[-3]))
    return ["| operator | reason | networks | axes |", "|---|---|---|---|", *rows] if rows else []


COLUMNS = (
    "network|input|parameters|certificate|coverage|planted|ensemble|FLOPs|1.25|ONNX|analysis|s|MB"
)


def _table(records: Sequence[Fields]) -> list[str]:
    head = COLUMNS.split("|")
    rows = ["| " + " | ".join(_cells(record)) + " |" for record in records]
    return ["| " + " | ".join(head) + " |", "|---|" + "---|" * (len(head) - 1), *rows]


def _cells(record: Fields) -> list[str]:
    certificate = record.get("certificate") or {}
    verdict = _number(certificate.get("max_error"), ".0e")
    if certificate and not certified(record):
        verdict += " **wrong**" if wrong(record) else " **failed**"
    parameters = record.get("parameters")
    return [
        str(record["name"]),
        "x".join(map(str, record.get("shape") or ())) or "-",
        f"{parameters / 1e6:.2f} M" if parameters else "-",
        verdict,
        _number(certificate.get("coverage"), ".3f"),
        _number(record.get("planted_error"), ".0e"),
        _number(record.get("ensemble_error"), ".0e"),
        _number(record.get("ensemble_flops"), ".3f"),
        _number(record.get("merge_flops"), ".3f"),
        _number(record.get("onnx_error"), ".0e"),
        _number(record.get("analysis_in_forwards"), ".1f"),
        f"{sum(record['seconds'].get(s, 0.0) for s in STEPS):.0f}",
        str(record.get("peak_mb") or "-"),
    ]


STEPS = ("build", "analyse", "planted", "ensemble", "merge", "onnx")


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
