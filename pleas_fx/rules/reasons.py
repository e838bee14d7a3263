"""Why an axis is held where nothing but the lack of labels speaks against moving it."""

from __future__ import annotations

COMBINED = "combined with a value that has no labels along this axis"
SUMMED = "summed with a value that has no labels along this axis"
WRITTEN = "a constant written in the model's code"
SLIDES = "a convolution slides over this axis"
