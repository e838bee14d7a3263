"""Elements as text. Names come from model files, so nothing gets in unescaped."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from markupsafe import Markup

Attribute = str | float | None


def clean(text: str) -> str:
    """Text without characters that can't be seen: they could reorder or break what is shown."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def number(value: float) -> str:
    """A coordinate, as short as it can be at a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0")


def tag(name: str, *content: Markup | str, **attributes: Attribute) -> Markup:
    """An element; ``class_`` and ``data_g`` are the attributes class and data-g."""
    opening = "".join(_attribute(key, value) for key, value in attributes.items())
    return Markup(f"<{name}{opening}>{''.join(map(_text, content))}</{name}>")


def group(content: Iterable[Markup], **attributes: Attribute) -> Markup:
    """An SVG group."""
    return tag("g", *content, **attributes)


def _attribute(key: str, value: Attribute) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else number(value)
    return f' {key.strip("_").replace("_", "-")}="{escape(clean(text))}"'


def _text(content: Markup | str) -> str:
    return content if isinstance(content, Markup) else escape(_lines(content))


def _lines(text: str) -> str:
    return "\n".join(clean(line) for line in text.split("\n"))
