"""How channel labels pass through ATen operators: one table per operator family.

An operator is listed in exactly one table; anything unlisted freezes what it touches.
"""

from __future__ import annotations

from collections.abc import Mapping

from pleas_fx.labels import Rule
from pleas_fx.rules.contraction import CONTRACTION
from pleas_fx.rules.movement import MOVEMENT
from pleas_fx.rules.normalisation import NORMALISATION
from pleas_fx.rules.pointwise import POINTWISE
from pleas_fx.rules.reduction import REDUCTION


def table(*families: Mapping[str, Rule]) -> Mapping[str, Rule]:
    """All families in one table; an operator listed twice is an error."""
    merged: dict[str, Rule] = {}
    for family in families:
        twice = merged.keys() & family.keys()
        if twice:
            raise ValueError(f"operators with two rules: {sorted(twice)}")
        merged.update(family)
    return merged


RULES = table(MOVEMENT, POINTWISE, CONTRACTION, NORMALISATION, REDUCTION)
