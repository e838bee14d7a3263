"""Convolutions with computed numbers of groups, as products: the same values, at any batch."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from passes import export
from passes._products import as_products, grouped_product
from passes.export import export_onnx
from pleas_fx.errors import ExportError
from tests.randomise import seeded

EXACT = 1e-12  # of values of order one, float64


class PerExample(nn.Module):
    """Every example has a kernel of its own (CondConv)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.route = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)
        self.table = nn.Parameter(torch.randn(4, 8 * 6 * 9) / 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        batch, channels, height, width = x.shape
        kernels = (self.route(x.mean((2, 3))).sigmoid() @ self.table).view(batch * 8, 6, 3, 3)
        together = x.reshape(1, batch * channels, height, width)
        made = F.conv2d(together, kernels, padding=1, groups=batch)
        return made.reshape(batch, 8, height, width).mean((2, 3))


def images(batch: int) -> Tensor:
    """Inputs of it."""
    return torch.randn((batch, 3, 9, 9), generator=torch.Generator().manual_seed(batch))


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("kernel", [(3, 2), (1, 1), (4,), (1,)], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2},
        {"padding": 1},
        {"dilation": 2},
        {"stride": (2,), "padding": (1,), "dilation": (1,)},
    ],
    ids=str,
)
def test_products_are_the_convolutions(
    groups: int, kernel: tuple[int, ...], options: dict[str, int | tuple[int, ...]]
) -> None:
    """Of rows and of images, with and without bias; the control is another stride."""
    random = torch.Generator().manual_seed(0)
    draw = lambda *s: torch.randn(s, generator=random, dtype=torch.float64)  # noqa: E731
    x, w = draw(2, 2 * groups, *(9, 8)[: len(kernel)]), draw(5 * groups, 2, *kernel)
    options = {k: v * len(kernel) if isinstance(v, tuple) else v for k, v in options.items()}
    convolve = F.conv2d if len(kernel) == 2 else F.conv1d
    for bias in (None, draw(5 * groups)):
        wanted = convolve(x, w, bias, groups=groups, **options)  # type: ignore[arg-type]
        found = grouped_product(x, w, bias, groups=groups, **options)  # type: ignore[arg-type]
        assert found.shape == wanted.shape
        assert float((found - wanted).abs().max()) < EXACT
        other = grouped_product(x, w, bias, groups=groups, **{**options, "stride": 3})  # type: ignore[arg-type]
        assert other.shape != wanted.shape


@torch.no_grad()
def test_only_computed_numbers_of_groups_are_replaced() -> None:
    """A number in the code stays a convolution; the network computes the same."""
    network = fx.symbolic_trace(seeded(PerExample, 0)).eval()
    wanted = network(images(3))
    assert as_products(network) == 1
    called = [n.target for n in network.graph.nodes if n.op == "call_function"]
    assert called.count(grouped_product) == 1
    assert F.conv2d not in called
    assert float((network(images(3)) - wanted).abs().max()) < 1e-6

    class Plain(nn.Module):
        def forward(self, x: Tensor, w: Tensor) -> Tensor:
            return F.conv2d(x, w, groups=3)

    assert as_products(fx.symbolic_trace(Plain())) == 0


def test_kernels_of_every_example_go_to_onnx_with_a_dynamic_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In parity at two batch sizes; the control: as convolutions they don't."""
    network = fx.symbolic_trace(seeded(PerExample, 0)).eval()
    parity = export_onnx(network, images(2), tmp_path / "m.onnx")
    assert parity.max_error < 1e-5
    assert parity.batches == (2, 3)
    assert parity.exporter == "torch.export, with products"
    monkeypatch.setattr(export, "as_products", lambda _: 0)
    with pytest.raises(ExportError, match="isn't exported") as caught:
        export_onnx(network, images(2), tmp_path / "m.onnx")
    assert "products" not in str(caught.value)


def test_a_number_of_channels_as_that_of_groups_stays_a_convolution(tmp_path: Path) -> None:
    """It doesn't depend on the batch: nothing is in the way of the first exporter."""

    class Blur(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, x.new_ones(3, 1, 2, 2) / 4, groups=x.shape[1])

    parity = export_onnx(fx.symbolic_trace(Blur()), images(2), tmp_path / "m.onnx")
    assert parity.exporter == "torch.export"
    assert "Conv" in {node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node}
