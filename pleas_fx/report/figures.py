"""Numbers as people read them, and the geometry of the page's bars."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

BAR = 240  # pixels of a full bar
GAP = 1.5  # pixels between the parts of a bar
NONE = "–"  # what stands for a number that doesn't exist

_UNITS = ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k"))


def count(value: float) -> str:
    """``25.6 M``: three significant digits and a unit; small whole numbers as they are."""
    if not math.isfinite(value):
        return NONE
    for size, unit in _UNITS:
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}" if abs(value) < 999.5 * size else f"{value:.2e}"
    return f"{value:.0f}"


def number(value: float) -> str:
    """Three significant digits, with an exponent only far from one."""
    if not math.isfinite(value):
        return NONE
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def percent(value: float) -> str:
    """A share in percent, with as many digits as say something."""
    if not math.isfinite(value):
        return NONE
    if 0 < abs(value) < 5e-5:
        return "< 0.01 %"
    return f"{100 * value:.{_digits(value)}f} %"


def whole(value: int) -> str:
    """``12,345``."""
    return f"{value:,}"


def _digits(share: float) -> int:
    return 0 if abs(share) >= 1 or share == 0 else 1 if abs(share) >= 0.1 else 2


def ratio(value: float) -> str:
    """``0.84×``."""
    return f"{value:.2f}×" if math.isfinite(value) else NONE


def seconds(value: float) -> str:
    """Milliseconds, seconds or minutes, whichever reads best."""
    if not math.isfinite(value):
        return NONE
    if value < 0.0995:
        return f"{1000 * value:.0f} ms"
    return f"{value:.1f} s" if value < 120 else f"{value / 60:.1f} min"


def memory(value: int) -> str:
    """Bytes with a decimal unit."""
    return f"{count(value)}B" if value >= 1000 else f"{value} B"


@dataclass(frozen=True, slots=True)
class Part:
    """One coloured stretch of a bar."""

    style: str  # a CSS class
    label: str  # shown when pointed at, read by screen readers
    start: float
    length: float


def share(value: float, largest: float) -> float:
    """The length of a plain bar; 0 for what can't be drawn."""
    if not (math.isfinite(value) and math.isfinite(largest)) or largest <= 0:
        return 0.0
    return round(BAR * min(max(value / largest, 0.0), 1.0), 1)


def stacked(parts: Iterable[tuple[str, str, float]], full: float) -> tuple[Part, ...]:
    """(style, label, amount) one after the other, ``full`` filling the whole bar."""
    bars, start = [], 0.0
    for style, label, amount in parts:
        length = share(amount, full)
        if amount > 0:
            bars.append(Part(style, label, round(start, 1), max(round(length - GAP, 1), 0.5)))
        start += length
    return tuple(bars)
