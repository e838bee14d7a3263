"""Merge two YOLOs with different classes and measure what they find; writes docs/detection.md.

    python -m benchmarks.detection.run [--seeds N] [--folder F] [--data D]

With the extras `zoo` and `packages` (ultralytics). The sources are trained once (files under
F/detection). See benchmarks/accuracy/README.md for the image sets, and for where they are looked
for.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import pleas_fx
from benchmarks.detection.precision import Precision, precision, predictions
from benchmarks.detection.scenes import DIGITS, GARMENTS, SIZE, Scenes, scenes
from benchmarks.detection.training import Detector, get

CONFIG = "yolov8n"
KINDS = (DIGITS, GARMENTS)
CALIBRATION, TEST, CHUNK = 256, 500, 50  # scenes a kind
DISTILLED, STEPS = "distilled", 300  # trained, but without labels
CASES = (
    *(("pleas", budget) for budget in (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)),
    *((DISTILLED, budget) for budget in (0.5, 1.0)),
    *(("side-by-side", budget) for budget in (0.5, 1.0, 1.5)),
    *((method, 1.3) for method in ("average", "permute", "pleas-paper")),
)
DOCS = Path(__file__).resolve().parents[2] / "docs"
CACHE = Path.home() / ".cache" / "pleas_fx_benchmarks"

Answers = Callable[[Tensor], Sequence[object]]  # an output a source


@dataclass(frozen=True, slots=True)
class Row:
    """What one network, or pair, finds: per kind, in scenes of that kind and in mixed ones."""

    method: str
    budget: float
    seed: int
    flops: float  # executed, over a source's mean
    seconds: float
    own: tuple[Precision, ...]
    mixed: tuple[Precision, ...]


@dataclass(frozen=True, slots=True)
class Tests:
    """Scenes of each kind, and of both."""

    own: tuple[Scenes, ...]
    mixed: Scenes

    def judge(self, answers: Answers) -> tuple[tuple[Precision, ...], tuple[Precision, ...]]:
        """Every head on its own objects: in its own scenes, and among others."""
        own = tuple(_of_head(answers, k, found) for k, found in enumerate(self.own))
        mixed = tuple(_of_head(answers, k, self.mixed.of_kind(k)) for k in range(len(KINDS)))
        return own, mixed


def _of_head(answers: Answers, head: int, found: Scenes) -> Precision:
    with torch.no_grad():
        raw = [predictions(answers(part)[head]) for part in found.images.split(CHUNK)]
    return precision(torch.cat(raw), found, len(KINDS[head].classes))


def rows(seed: int, folder: Path, data: Path) -> list[Row]:
    """The sources, and every case."""
    tests = Tests(
        tuple(scenes([kind], TEST, seed, test=True, folder=data) for kind in KINDS),
        scenes(KINDS, TEST, seed, test=True, folder=data),
    )
    sources = [get(Detector(CONFIG, kind, seed), folder / "detection", data) for kind in KINDS]
    seen = [scenes([kind], CALIBRATION, 10**6 + seed, test=False, folder=data) for kind in KINDS]
    calibration = [found.images for found in seen]
    found = [Row("sources", 2.0, seed, 2.0, 0.0, *tests.judge(lambda x: [m(x) for m in sources]))]
    print(line(found[0]), flush=True)
    for method, budget in CASES:
        found.append(_merged(method, budget, seed, sources, calibration, tests))
        print(line(found[-1]), flush=True)
    return found


def _merged(
    method: str,
    budget: float,
    seed: int,
    sources: Sequence[nn.Module],
    calibration: Sequence[Tensor],
    tests: Tests,
) -> Row:
    start = time.perf_counter()
    result = pleas_fx.merge(
        sources,
        list(calibration),
        flops=budget,
        method="pleas" if method == DISTILLED else method,
        distil=STEPS if method == DISTILLED else 0,
        seed=seed,
        progress=False,
    )
    spent = time.perf_counter() - start
    mean = statistics.fmean(c.flops for c in result.report.sources)
    flops = result.report.merged.flops / mean
    return Row(method, budget, seed, flops, spent, *tests.judge(result.model))


def line(row: Row) -> str:
    """One line for the terminal."""
    figures = [f"{p.half:.3f}/{p.strict:.3f}" for p in (*row.own, *row.mixed)]
    return f"{row.seed} {row.method}@{row.budget:g}: {' '.join(figures)} {row.flops:.3f}x"


HEAD = f"""# Two detectors with different classes

Written by `python -m benchmarks.detection.run`. Two {CONFIG} of ultralytics, trained from scratch
on scenes of {SIZE}x{SIZE}: one finds the ten digits of MNIST, the other five garments of
Fashion-MNIST, pasted on coloured noise. No training image has both. Merged without labels, from
{CALIBRATION} scenes of each kind; tested on {TEST} scenes of each kind, made of the sets' test
images, and on {TEST} with both kinds in them, where each output is judged by its own objects.
"distilled" is "pleas" with `distil={STEPS}`: trained towards what the sources say of these scenes.

Mean average precision in percent, at an overlap of 0.5 and (in brackets) over 0.5 to 0.95, of
{{seeds}}. FLOPs are executed ones over a source's.

| method | FLOPs | digits | garments | digits among garments | garments among digits |
|---|---:|---:|---:|---:|---:|
"""


def page(found: Sequence[Row]) -> str:
    """The document."""
    seeds = len({row.seed for row in found})
    cases = list(dict.fromkeys((row.method, row.budget) for row in found))
    lines = []
    for method, budget in cases:
        own = [row for row in found if (row.method, row.budget) == (method, budget)]
        flops = statistics.fmean(row.flops for row in own)
        figures = zip(*((*row.own, *row.mixed) for row in own), strict=True)
        cells = " | ".join(_cell(column) for column in figures)
        lines.append(f"| {method} | {flops:.2f} | {cells} |\n")
    return HEAD.format(seeds="one pair" if seeds == 1 else f"{seeds} pairs: the mean") + "".join(
        lines
    )


def _cell(found: Sequence[Precision]) -> str:
    half = 100 * statistics.fmean(p.half for p in found)
    strict = 100 * statistics.fmean(p.strict for p in found)
    return f"{half:.1f} ({strict:.1f})"


def main() -> None:
    """Measure every case and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=CACHE)
    parser.add_argument("--data", type=Path, default=CACHE / "data")
    parser.add_argument("--docs", type=Path, default=DOCS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found = [row for seed in range(asked.seeds) for row in rows(seed, asked.folder, asked.data)]
    (asked.docs / "detection.json").write_text(json.dumps([asdict(r) for r in found], indent=1))
    (asked.docs / "detection.md").write_text(page(found))


if __name__ == "__main__":
    main()
