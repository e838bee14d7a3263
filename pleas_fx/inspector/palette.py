"""Colours of the groups, for both schemes, with ink that can be read on them."""

from __future__ import annotations

# Okabe and Ito's colours for residual streams, paler ones for the groups between them; as there
# are more groups than hues, the number of a group is written wherever its colour is.
LIGHT = (
    "#0072b2", "#d55e00", "#00805c", "#c25d94", "#e69f00", "#4aa8e0", "#882255", "#8a8a1f",
    "#7db8d8", "#f0a36b", "#8cc487", "#b3aed6", "#eb9fce", "#cdb45c", "#62c2b4", "#c69a7e",
    "#abc650", "#d48fd0", "#8fa8ea", "#ea8f8a",
)  # fmt: skip
DARK = (
    "#3d9fe0", "#f0793a", "#22b98a", "#e089b8", "#f2b53a", "#7cc8f5", "#c95f93", "#b8b84a",
    "#5f9dc0", "#c98550", "#6fa86a", "#938dc0", "#c77fae", "#a8914a", "#4aa294", "#a37c62",
    "#8ba53c", "#ad6fa9", "#7088cc", "#c4706b",
)  # fmt: skip
INKS = ("#ffffff", "#0b0d10")


def luminance(colour: str) -> float:
    """Relative luminance as in WCAG 2."""
    channels = (int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5))
    linear = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    """Contrast of two colours as in WCAG 2, from 1 to 21."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def ink(colour: str) -> str:
    """The ink that can be read best on a colour."""
    return max(INKS, key=lambda candidate: contrast(candidate, colour))


def rules(colours: tuple[str, ...]) -> str:
    """One CSS class a colour, which sets the colour and its ink."""
    return "\n".join(f".c{k} {{ --c: {c}; --i: {ink(c)}; }}" for k, c in enumerate(colours))
