"""Layers as matrix products: rows times matrix equals the layer, for every kind of layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pleas_fx.ir import IntArray
from pleas_fx.unfold import (
    from_matrix,
    input_rows,
    is_transposed,
    output_positions,
    output_rows,
    to_matrix,
)

TIGHT = 1e-12  # relative; sums of at most some hundred float64 products
SAMPLED = 40

# kind, (inputs, outputs, kernel), options, input size without batch and channels
LAYERS: list[tuple[Any, tuple[Any, ...], dict[str, Any], tuple[int, ...]]] = [
    (nn.Conv1d, (4, 6, 3), {}, (11,)),
    (nn.Conv1d, (4, 6, 4), {"stride": 3, "padding": 2, "dilation": 2}, (17,)),
    (nn.Conv1d, (4, 6, 4), {"padding": "same", "dilation": 3}, (13,)),
    (nn.Conv1d, (4, 6, 5), {"padding": 2, "padding_mode": "replicate", "bias": False}, (9,)),
    (nn.Conv2d, (4, 6, 1), {}, (5, 7)),
    (nn.Conv2d, (4, 6, (3, 5)), {"stride": (2, 1), "padding": (1, 3)}, (9, 7)),
    (nn.Conv2d, (4, 6, 3), {"padding": "valid", "bias": False}, (5, 7)),
    (nn.Conv2d, (4, 6, (2, 4)), {"padding": "same"}, (5, 7)),
    (nn.Conv2d, (4, 6, (3, 5)), {"padding": (1, 2), "padding_mode": "circular"}, (5, 7)),
    (nn.Conv2d, (4, 6, (3, 5)), {"padding": (1, 2), "padding_mode": "reflect"}, (5, 7)),
    (nn.Conv2d, (4, 6, 3), {"padding": "same", "padding_mode": "reflect"}, (5, 7)),
    (nn.Conv2d, (4, 6, 3), {"dilation": (1, 2), "padding": 1, "stride": 2}, (9, 11)),
    (nn.Conv2d, (4, 6, 3), {"groups": 2, "padding": 1}, (5, 7)),
    (nn.Conv2d, (6, 6, 3), {"groups": 6, "padding": 1, "stride": 2}, (5, 7)),
    (nn.Conv2d, (3, 9, 3), {"groups": 3, "dilation": 2}, (7, 9)),
    (nn.Conv3d, (4, 6, (2, 3, 1)), {"stride": (1, 2, 1), "padding": (1, 0, 2)}, (5, 7, 3)),
    (nn.Conv3d, (4, 6, 3), {"groups": 2, "padding": 1, "padding_mode": "circular"}, (3, 5, 4)),
    (nn.ConvTranspose1d, (4, 6, 3), {}, (7,)),
    (nn.ConvTranspose1d, (4, 6, 5), {"stride": 3, "padding": 2, "output_padding": 2}, (7,)),
    (nn.ConvTranspose1d, (4, 6, 2), {"padding": 1, "stride": 2}, (7,)),
    (nn.ConvTranspose2d, (4, 6, 2), {"stride": 2}, (3, 5)),
    (nn.ConvTranspose2d, (4, 6, (3, 4)), {"stride": (2, 3), "output_padding": (1, 2)}, (3, 5)),
    (nn.ConvTranspose2d, (4, 6, 3), {"dilation": (2, 1), "padding": (1, 2)}, (5, 7)),
    (nn.ConvTranspose2d, (4, 6, 3), {"groups": 2, "stride": 2, "bias": False}, (3, 5)),
    (nn.ConvTranspose2d, (6, 6, 3), {"groups": 6, "stride": 2, "padding": 1}, (3, 5)),
    (
        nn.ConvTranspose2d,
        (4, 6, 3),
        {"groups": 2, "stride": 3, "dilation": 2, "padding": 1, "output_padding": 2},
        (3, 5),
    ),
    (nn.ConvTranspose3d, (4, 6, 2), {"stride": (2, 1, 2), "padding": (0, 1, 0)}, (3, 4, 2)),
    (nn.Linear, (7, 5), {}, ()),
    (nn.Linear, (7, 5), {"bias": False}, (3,)),
    (nn.Linear, (7, 5), {}, (3, 4)),
]


def name(entry: tuple[Any, tuple[Any, ...], dict[str, Any], tuple[int, ...]]) -> str:
    """A readable test id."""
    kind, sizes, options, shape = entry
    settings = ",".join(f"{k}={v}" for k, v in options.items())
    return f"{kind.__name__}{sizes}-{settings}-{shape}".replace(" ", "")


# torch says that an even kernel with "same" padding costs a copy
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

every_layer = pytest.mark.parametrize("entry", LAYERS, ids=name)


def make(entry: Any) -> tuple[nn.Module, Tensor, Tensor, IntArray]:
    """The layer with random parameters, an input, its output and sampled positions."""
    kind, sizes, options, shape = entry
    torch.manual_seed(0)
    layer = kind(*sizes, **options, dtype=torch.float64)
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    full = (2, *shape, sizes[0]) if kind is nn.Linear else (2, sizes[0], *shape)
    x = torch.randn(full, dtype=torch.float64)
    with torch.no_grad():
        y = layer(x)
    count = output_positions(layer, y.shape)
    at = np.random.default_rng(0).permutation(count)[:SAMPLED]
    return layer, x, y, at


def product(layer: nn.Module, rows: Tensor, matrix: Tensor) -> Tensor:
    """(rows, channels): group by group, the rows times the matrix, and the bias."""
    result = torch.einsum("rgk,gok->rgo", rows, matrix).flatten(1)
    bias = layer.bias
    return result if bias is None else result + bias.detach()


def distance(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the largest entry."""
    return float((a - b).abs().max() / b.abs().max())


@every_layer
def test_rows_times_matrix_is_the_layer(entry: Any) -> None:
    """At every sampled position, the layer's output is a product of input rows and weights."""
    layer, x, y, at = make(entry)
    rows = input_rows(layer, x, y.shape, at)
    expected = output_rows(layer, y, at)
    found = product(layer, rows, to_matrix(layer, layer.weight.detach()))
    assert found.shape == expected.shape == (len(at), y.numel() // output_positions(layer, y.shape))
    assert distance(found, expected) < TIGHT


@pytest.mark.parametrize("padding", ["same", (2, 4), (1, 0)])
def test_sizes_that_were_set_later_are_the_ones(padding: Any) -> None:
    """As code sets them that makes an encoder keep its resolution."""
    layer, x = nn.Conv2d(4, 6, 3, padding="same").double(), torch.randn(2, 4, 9, 11).double()
    layer.dilation, layer.padding, layer.stride = (2, 4), padding, (1, 1)
    y = layer(x).detach()
    at = np.arange(output_positions(layer, y.shape))
    found = product(
        layer, input_rows(layer, x, y.shape, at), to_matrix(layer, layer.weight.detach())
    )
    assert distance(found, output_rows(layer, y, at)) < TIGHT


@every_layer
def test_shuffled_weights_are_noticed(entry: Any) -> None:
    """Negative control: the unknowns in another order give another output."""
    layer, x, y, at = make(entry)
    rows = input_rows(layer, x, y.shape, at)
    matrix = to_matrix(layer, layer.weight.detach()).roll(1, dims=-1)
    if matrix.shape[-1] > 1:
        assert distance(product(layer, rows, matrix), output_rows(layer, y, at)) > 1e-3


@every_layer
def test_rows_of_other_positions_are_noticed(entry: Any) -> None:
    """Negative control: rows belong to positions, in the order asked for."""
    layer, x, y, at = make(entry)
    rows = input_rows(layer, x, y.shape, np.roll(at, 1))
    found = product(layer, rows, to_matrix(layer, layer.weight.detach()))
    assert distance(found, output_rows(layer, y, at)) > 1e-3


@every_layer
def test_from_matrix_inverts_to_matrix(entry: Any) -> None:
    """A matrix and back is the weight, bit by bit; the other way round too."""
    layer, *_ = make(entry)
    weight = layer.weight.detach()
    matrix = to_matrix(layer, weight)
    assert torch.equal(from_matrix(layer, matrix, weight), weight)
    other = torch.randn_like(matrix)
    assert torch.equal(to_matrix(layer, from_matrix(layer, other, weight)), other)
    changed = matrix.clone()
    changed.view(-1)[1] += 1.0
    assert int((from_matrix(layer, changed, weight) != weight).sum()) == 1  # the control


def test_from_matrix_takes_the_dtype_of_the_weight() -> None:
    """Solutions are float64; layers needn't be."""
    layer = nn.ConvTranspose2d(4, 6, 3)
    matrix = to_matrix(layer, layer.weight.detach().double())
    assert from_matrix(layer, matrix, layer.weight).dtype == torch.float32


@every_layer
def test_every_position_has_one_row(entry: Any) -> None:
    """All positions together are the whole output, each channel once."""
    layer, x, y, _ = make(entry)
    count = output_positions(layer, y.shape)
    everything = np.arange(count)
    assert output_rows(layer, y, everything).numel() == y.numel()
    assert len(input_rows(layer, x, y.shape, everything)) == count


def test_output_rows_hold_one_position_each() -> None:
    """Rows run over batch and space; channels are on dim 1, for linear layers on the last."""
    y = torch.arange(2 * 3 * 4).view(2, 3, 4)
    conv, linear, norm = nn.Conv1d(1, 3, 1), nn.Linear(1, 4), nn.LayerNorm(4)
    at = np.array([5, 0])
    assert torch.equal(output_rows(conv, y, at), torch.stack([y[1, :, 1], y[0, :, 0]]))
    for layer in (linear, norm):
        assert output_positions(layer, y.shape) == 6
        assert torch.equal(output_rows(layer, y, at), torch.stack([y[1, 2], y[0, 0]]))
    assert output_positions(conv, y.shape) == 8


def test_transposed_layers_are_told_apart() -> None:
    """Only transposed convolutions store inputs first."""
    assert is_transposed(nn.ConvTranspose1d(2, 3, 1))
    assert not is_transposed(nn.Conv1d(2, 3, 1))
    assert not is_transposed(nn.Linear(2, 3))
