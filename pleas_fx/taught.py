"""The layers of one source, or a few, and outputs fitted to what all sources say.

A source that is taken alone has seen one kind of images; its last layers can still learn from the
others what to answer on theirs (docs/decisions/2026-11-29-taught.md).
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace

import numpy as np

from passes.rewrite import Rewritten, Site
from pleas_fx.ir import GroupId, Layout


def taught_by_all(rewritten: Rewritten, outputs: Set[GroupId]) -> tuple[Site, ...]:
    """The layers of some sources' network that make ``outputs``, to be fitted to those of all.

    Every output has to stand for the same one of every source.
    """
    layout = rewritten.layout
    return tuple(_taught(site) for site in rewritten.sites if _gives(layout, site, outputs))


def _gives(layout: Layout, site: Site, outputs: Set[GroupId]) -> bool:
    """Whether all that a layer makes are outputs."""
    found = {
        int(group)
        for classes in layout.values.get(site.node, ())
        for group in np.unique(layout.group[classes[classes >= 0]])
    }
    return bool(found) and found <= outputs


def _taught(site: Site) -> Site:
    own = site.rows.max(1, keepdims=True)
    return replace(site, taught=np.where(site.rows < 0, own, site.rows))
