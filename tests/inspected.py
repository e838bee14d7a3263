"""Views and layouts of the zoo's networks, made once, for the tests of the inspector."""

from __future__ import annotations

from functools import cache

import pytest

from pleas_fx.api import analyse
from pleas_fx.inspector import build, layout
from pleas_fx.inspector.layout import Layout
from pleas_fx.inspector.view import View
from tests.networks import NETWORKS

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
