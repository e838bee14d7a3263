"""Views, layouts and pages of the zoo's networks, made once, for the tests of the inspector."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from pleas_fx.api import analyse
from pleas_fx.inspector import build, layout, render
from pleas_fx.inspector.layout import Layout
from pleas_fx.inspector.view import View
from pleas_fx.ir import Axis
from tests.networks import NETWORKS
from tests.test_report import EVIL

DRAWN = tuple(
    """resnet resnet_bottleneck densenet mobilenet_v2 mobilenet_v3 shufflenet_v2 convnext googlenet
    squeezenet preactivation_resnet unet unet_transposed detector two_inputs grouped
    weight_standardised sliding_attention flatten""".split()
)
every_drawing = pytest.mark.parametrize("name", DRAWN)


@cache
def view_of(name: str) -> View:
    """What is shown of a network of the zoo."""
    network = NETWORKS[name]
    return build(*analyse(network.make(0), network.inputs()))


@cache
def laid_out(name: str) -> Layout:
    """Where it is drawn."""
    return layout(view_of(name))


@cache
def page_of(name: str) -> str:
    """Its page."""
    return render(view_of(name), laid_out(name), name)


def hostile() -> View:
    """A view whose every free text is an attack."""
    view = view_of("resnet")
    boxes = tuple(replace(b, name=EVIL, text=EVIL, names=(EVIL,)) for b in view.boxes)
    groups = tuple(
        replace(g, layers=tuple(replace(u, layer=EVIL, axes=(EVIL,)) for u in g.layers))
        for g in view.groups
    )
    frozen = tuple(
        replace(f, node=EVIL, reason=EVIL, axes=(Axis(EVIL, 0),) * 5) for f in view.frozen
    )
    return replace(view, boxes=boxes, groups=groups, frozen=frozen)
