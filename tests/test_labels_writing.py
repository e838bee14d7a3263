"""Rules for writing into tensors: what is written moves with the place it is written to."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pleas_fx.labels import Labeller
from pleas_fx.rules import RULES

ROWS, COLUMNS = 5, 7


def written(function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> tuple[Labeller, Tensor]:
    """A function of parameters of these shapes, and of an input, under the labeller."""
    labeller = Labeller(RULES)
    parameters = [torch.rand(shape) for shape in shapes]
    for k, parameter in enumerate(parameters):
        labeller.parameter(f"p{k}", parameter)
    data = torch.rand(ROWS, COLUMNS)
    labeller.source(data)
    with labeller:
        result = function(data, *parameters)
    return labeller, result


def tied(labeller: Labeller) -> set[tuple[int, int]]:
    """All ties, the smaller label first."""
    pairs = [pair for tie in labeller.ties for pair in tie.T.tolist()]
    return {(min(a, b), max(a, b)) for a, b in pairs}


def reasons(labeller: Labeller) -> set[str]:
    """Why labels may not move."""
    return {pin.reason for pin in labeller.pins}


def test_copied_channels_move_with_the_target() -> None:
    """Labels at equal places are tied, dim by dim; the target keeps its own."""
    labeller, result = written(lambda x, p, q: p.clone().copy_(q), (ROWS, COLUMNS), (ROWS, COLUMNS))
    n = ROWS + COLUMNS
    assert tied(labeller) == {(k, k + n) for k in range(n)}
    assert not labeller.pins
    assert [c.unique().tolist() for c in labeller.of(result)] == [[*range(5)], [*range(5, 12)]]


def test_a_part_that_is_written_is_tied_alone() -> None:
    """Three columns get other values; the others stay free."""

    def part(x: Tensor, p: Tensor, q: Tensor) -> Tensor:
        y = p.clone()
        y[:, 1:4].copy_(q)
        return y

    labeller, _ = written(part, (ROWS, COLUMNS), (3,))
    assert tied(labeller) == {(6, 12), (7, 13), (8, 14)}


def test_channels_written_into_a_tensor_without_labels_are_held() -> None:
    """Nobody would know where they are."""
    labeller, result = written(lambda x, p: x.clone().copy_(p), (ROWS, COLUMNS))
    assert reasons(labeller) == {"copy_: writes labelled channels into an unlabelled tensor"}
    assert not labeller.of(result)


def test_channels_written_across_are_held() -> None:
    """The target has labels along its rows only; columns are written."""
    labeller, _ = written(
        lambda x, p, q: (p.view(-1, 1) + x).copy_(q.expand(ROWS, -1)), (ROWS,), (COLUMNS,)
    )
    held = "combined with what is fixed along this axis"  # the sum with the input
    written_across = "copy_: the written channels don't line up with the target's"
    assert reasons(labeller) == {held, written_across}


def test_a_value_that_differs_between_channels_holds_them() -> None:
    """The input has no channels: what it writes has places that may not move."""
    labeller, _ = written(lambda x, p: p.clone().copy_(x), (ROWS, COLUMNS))
    assert reasons(labeller) == {"combined with what is fixed along this axis"}
    assert sum(len(pin.labels) for pin in labeller.pins) == ROWS + COLUMNS


def test_a_value_that_is_alike_for_all_channels_holds_nothing() -> None:
    """One number a row holds the rows, not the columns."""
    labeller, _ = written(lambda x, p: p.clone().copy_(x[:, :1].expand(-1, 7)), (ROWS, COLUMNS))
    assert [pin.labels.tolist() for pin in labeller.pins] == [[*range(ROWS)]]


def test_zeros_are_alike_for_all_channels() -> None:
    """Zeroing some of the channels holds nothing and loses no label, but tells them apart."""

    def silenced(x: Tensor, p: Tensor) -> Tensor:
        y = p.clone()
        y[2:4].zero_()
        return y

    labeller, result = written(silenced, (ROWS,))
    assert not labeller.pins
    assert not labeller.ties
    assert labeller.of(result)[0].tolist() == [*range(ROWS)]
    assert any(site.flatten().tolist() == [2, 3] for site in labeller.sites)
