"""Why an axis is held that may as well be one of positions, which no channel rule can know."""

from __future__ import annotations

COMBINED = "combined with what is fixed along this axis"
SUMMED = "reads what is fixed along this axis (the network's input, say)"
WRITTEN = "a constant written in the model's code"
SLIDES = "a convolution slides over this axis"
SEVERAL = "concatenated along a dim with several coordinates"
SUMMED_BOTH = "several coordinates along a summed index"
MULTIPLIED = "multiplied with a value that differs per block without labels"
OUTPUT = "network output"
OUTPUT_BESIDE = "network output, along several dims"
