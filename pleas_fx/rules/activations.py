"""Activations: what acts on every number by itself, by name, and the most that it rises by."""

from __future__ import annotations

# Of the parameters that they have by default. Functions and methods by the module's name in small.
SLOPES = {
    "CELU": 1.0,
    "ELU": 1.0,
    "GELU": 1.13,
    "Hardsigmoid": 1 / 6,
    "Hardswish": 1.5,
    "Hardtanh": 1.0,
    "LeakyReLU": 1.0,
    "LogSigmoid": 1.0,
    "Mish": 1.09,
    "ReLU": 1.0,
    "ReLU6": 1.0,
    "SELU": 1.76,
    "SiLU": 1.1,
    "Sigmoid": 0.25,
    "Softplus": 1.0,
    "Softsign": 1.0,
    "Tanh": 1.0,
}
_FUNCTIONS = {name.lower(): slope for name, slope in SLOPES.items()} | {"leaky_relu": 1.0}


def slope_of(name: str) -> float | None:
    """Of a module's class or a function (in place or not); None for anything else."""
    return SLOPES.get(name) or _FUNCTIONS.get(name.removesuffix("_"))
