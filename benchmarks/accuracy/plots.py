"""Accuracy against executed FLOPs and against parameters, a line a method."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib as mpl

from benchmarks.accuracy.methods import METHODS
from benchmarks.accuracy.scenarios import CURVES, SCENARIOS
from benchmarks.accuracy.summary import Cells

mpl.use("agg")
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
LOOK = {
    "pleas": ("#c1121f", "o"),
    "side-by-side": ("#1d6fa5", "s"),
    "published": ("#2a9d55", "^"),
    "merged-refit": ("#8a5fbf", "D"),
    "one-source": ("#d97706", "<"),
    "zipit": ("#b07d12", "v"),
    "permute": ("#777777", "x"),
    "published-adam": ("#2a9d55", "+"),
    "regmean": ("#444444", "1"),
}


def draw(found: Cells, folder: Path) -> list[str]:
    """One picture an axis, a panel a scenario with a curve; their file names."""
    architectures = sorted({a for s, a, m, b in found if b == 0.25})
    names = []
    for architecture in architectures:
        for size in ("flops", "params"):
            names.append(f"{architecture}-{size}.png")
            folder.mkdir(parents=True, exist_ok=True)
            with mpl.rc_context(STYLE):
                _picture(found, architecture, size, folder / names[-1])
    return names


def _picture(found: Cells, architecture: str, size: str, path: Path) -> None:
    from matplotlib import pyplot

    shown = [s for s in CURVES if (s, architecture, "pleas", 1.0) in found]
    figure, axes = pyplot.subplots(1, len(shown), figsize=(3.1 * len(shown), 3.1), squeeze=False)
    for axis, scenario in zip(axes[0], shown, strict=True):
        _panel(axis, found, scenario, architecture, size)
    what = "executed FLOPs" if size == "flops" else "parameters"
    axes[0][0].set_ylabel("accuracy, %")
    figure.supxlabel(f"{what}, relative to one source ({architecture})", fontsize=8)
    handles = {
        text: handle
        for axis in axes[0]
        for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        list(handles.values()), list(handles), loc="lower center", ncols=6, frameon=False,
        bbox_to_anchor=(0.5, -0.14),
    )  # fmt: skip
    figure.tight_layout(pad=0.4)
    figure.savefig(path, metadata={"Software": None}, dpi=100, bbox_inches="tight")
    pyplot.close(figure)


def _panel(axis: Any, found: Cells, scenario: str, architecture: str, size: str) -> None:
    axis.set_title(SCENARIOS[scenario].title, fontsize=8)
    seen = []
    for method, (colour, marker) in LOOK.items():
        points = sorted(
            (getattr(c, size), 100 * c.accuracy, 100 * c.spread if c.seeds > 1 else 0.0)
            for (s, a, m, b), c in found.items()
            if (s, a, m) == (scenario, architecture, method) and not math.isnan(c.accuracy)
        )
        if not points:
            continue
        seen += [y for _, y, _ in points]
        x, y, error = zip(*points, strict=True)
        wide = method == "side-by-side"  # the default often lies on it
        axis.errorbar(
            *(x, y, error),
            color=colour,
            marker=marker,
            ms=6 if wide else 4,
            lw=3 if wide else 1.2,
            alpha=0.5 if wide else 1.0,
            zorder=2 if wide else 3,
            capsize=2,
            label=METHODS[method].title,
        )
    for method, style, text in (("own", ":", "sources"), ("ensemble", "--", "exact ensemble")):
        cell = found.get((scenario, architecture, method, 0.0))
        if cell is not None:
            axis.axhline(100 * cell.accuracy, color="black", ls=style, lw=0.9, label=text)
            seen.append(100 * cell.accuracy)
    top = max(seen)
    axis.set_ylim(max(min(seen), top - 25) - 1, top + 1)
