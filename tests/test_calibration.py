"""Calibration data: every form gives the same batches, every defect is named."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from pleas_fx.calibration import Batches, PerSource, collect
from pleas_fx.errors import CalibrationError, OptionError


def images(count: int = 10, seed: int = 0) -> Tensor:
    """``count`` small images."""
    return torch.randn(count, 3, 4, 5, generator=torch.Generator().manual_seed(seed))


def joined(found: Batches) -> Tensor:
    """The first input of all batches."""
    return torch.cat([batch[0] for batch in found.batches])


class TestForms:
    """The same images in any form come out the same."""

    @pytest.mark.parametrize(
        "wrap",
        [
            lambda x: x,
            lambda x: x.numpy(),
            lambda x: list(x.split(4)),
            lambda x: tuple(x.split(4)),
            lambda x: iter(x.split(3)),
            lambda x: [batch.numpy() for batch in x.split(4)],
            lambda x: [(batch, torch.zeros(len(batch))) for batch in x.split(4)],
            lambda x: [[batch, torch.zeros(len(batch), dtype=torch.int64)] for batch in x.split(4)],
            lambda x: [{"y": torch.ones(4), "image": batch} for batch in x.split(4)],
            lambda x: [UserDict(pixel_values=batch) for batch in x.split(4)],
            lambda x: [{"ids": "text", "whatever": batch} for batch in x.split(4)],
            lambda x: {"images": x, "labels": torch.zeros(len(x))},
            lambda x: (x, torch.arange(len(x))),
            lambda x: [x.numpy(), np.arange(len(x), dtype=">i2")],
            lambda x: DataLoader(TensorDataset(x, torch.arange(len(x))), batch_size=4),
        ],
    )
    def test_every_form_holds_the_same_images(self, wrap: object) -> None:
        """Tensors, arrays, batches, pairs, dicts, loaders and generators agree."""
        found = collect(wrap(images()))  # type: ignore[operator]
        assert torch.equal(joined(found), images())
        assert found.owners == (None,) * len(found.batches)

    @given(st.integers(1, 40), st.integers(1, 15))
    def test_no_batch_is_larger_than_asked(self, count: int, size: int) -> None:
        """Any number of images, cut at any size, stays complete and in order."""
        found = collect(images(count), batch_size=size)
        assert max(len(batch[0]) for batch in found.batches) == min(size, count)
        assert torch.equal(joined(found), images(count))
        assert found.examples == count

    def test_a_generator_is_read_once(self) -> None:
        """One-shot data: nothing asks for a second pass."""
        read: list[int] = []

        def once() -> Iterator[Tensor]:
            for number in range(3):
                read.append(number)
                yield images(2, number)

        collect(once())
        assert read == [0, 1, 2]

    @pytest.mark.parametrize("wrap", [lambda b: b, lambda b: (b, 1), lambda b: {"x": b}])
    def test_a_loader_may_reuse_its_buffer(self, wrap: Callable[[Tensor], object]) -> None:
        """Every batch is held as it was, although the loader writes over it."""

        def reused() -> Iterator[object]:
            buffer = torch.zeros(2, 3)
            for number in range(3):
                yield wrap(buffer.fill_(number))

        assert [float(batch[0][0, 0]) for batch in collect(reused()).batches] == [0, 1, 2]

    def test_a_tensor_is_not_copied(self) -> None:
        """Negative control: data that is held anyway doesn't need twice the memory."""
        data = images()
        assert collect(data).batches[0][0].data_ptr() == data.data_ptr()

    def test_arrays_of_another_byte_order_are_numbers_too(self) -> None:
        """As in files from other machines."""
        assert torch.equal(joined(collect(images().numpy().astype(">f4"))), images())

    def test_several_inputs_stay_together(self) -> None:
        """Two inputs: as batches of pairs, and as one pair of whole tensors."""
        first, second = images(6), torch.randn(6, 2)
        pairs = list(zip(first.split(2), second.split(2), strict=True))
        for data in (pairs, (first, second), [first, second], (first, second, torch.arange(6))):
            found = collect(data, inputs=2, batch_size=2)
            assert [len(batch) for batch in found.batches] == [2, 2, 2]
            assert torch.equal(torch.cat([batch[1] for batch in found.batches]), second)

    def test_owners_follow_the_sources(self) -> None:
        """PerSource: every batch knows whose it is, also when the forms differ."""
        found = collect(PerSource([images(5), iter(images(3, 1).split(1))]), batch_size=2)
        assert found.owners == (0, 0, 0, 1, 1, 1)
        assert torch.equal(joined(found), torch.cat([images(5), images(3, 1)]))

    def test_dtype_is_converted_on_request_only(self) -> None:
        """NumPy's float64 stays, unless the network's dtype is asked for."""
        data = images().double().numpy()
        assert collect(data).batches[0][0].dtype == torch.float64
        assert collect(data, dtype=torch.float32).batches[0][0].dtype == torch.float32

    def test_the_users_tensor_is_neither_changed_nor_tracked(self) -> None:
        """Gradients aren't followed, and the values stay."""
        data = images().requires_grad_()
        before = data.detach().clone()
        assert not collect(data).batches[0][0].requires_grad
        assert torch.equal(data, before)

    def test_read_only_arrays_are_taken_without_a_warning(self) -> None:
        """Memory-mapped arrays are usual for calibration data."""
        array = images().numpy()
        array.setflags(write=False)
        assert torch.equal(joined(collect(array)), images())


def spoiled(value: float) -> Tensor:
    """Images with one bad number."""
    data = images()
    data[7, 2, 3, 1] = value
    return data


def failing() -> Iterator[Tensor]:
    """One good batch, then an error."""
    yield images()
    raise OSError("disk on fire")


class TestDefects:
    """Every defect is a CalibrationError that says where it is."""

    @pytest.mark.parametrize(
        ("data", "words"),
        [
            ([], ["empty"]),
            (images(0), ["batch 0", "empty"]),
            ([images(), images(0)], ["batch 1", "empty"]),
            (PerSource([]), ["empty"]),
            (PerSource([images(), []]), ["source 1", "empty"]),
            (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), ["uint8", "normalise"]),
            (np.zeros((2, 3, 4, 4), np.uint8), ["uint8", "normalise"]),
            (torch.zeros(2, 3, dtype=torch.int64), ["int64", "floating point"]),
            (torch.zeros(2, 3, dtype=torch.complex64), ["complex64"]),
            (torch.zeros(2, 3).to(torch.float8_e4m3fn), ["float8", "floating point"]),
            (torch.zeros(2, 3).to_sparse(), ["sparse", "dense"]),
            (torch.zeros(2, 3, device="meta"), ["meta"]),
            (np.array(["a", "b"]), ["not numbers"]),
            (torch.tensor(1.0), ["single number"]),
            (spoiled(float("nan")), ["batch 0", "NaN", "[7, 2, 3, 1]"]),
            (spoiled(float("inf")), ["batch 0", "Inf", "[7, 2, 3, 1]"]),
            (spoiled(float("-inf")), ["Inf"]),
            ([images(), spoiled(float("nan"))], ["batch 1", "NaN"]),
            (PerSource([images(), spoiled(float("nan"))]), ["batch 0 of source 1", "NaN"]),
            ([images(), images()[:, :, :3]], ["batch 1", "(N, 3, 3, 5)", "(N, 3, 4, 5)"]),
            (PerSource([images(), images()[:, :2]]), ["source 1", "(N, 2, 4, 5)"]),
            ([images(), "text"], ["batch 1", "str"]),
            ([{"a": 1}], ["batch 0", "without any tensor"]),
            ([()], ["batch 0", "without any tensor"]),
            ("folder/", ["str"]),
            (None, ["NoneType"]),
            (3, ["int"]),
            (PerSource([PerSource([images()])]), ["PerSource"]),
            (TensorDataset(images()), ["DataLoader"]),
            (failing(), ["batch 1", "disk on fire"]),
        ],
    )
    def test_is_named(self, data: object, words: list[str]) -> None:
        """The message holds the place and the problem, in one line."""
        with pytest.raises(CalibrationError) as caught:
            collect(data)
        assert all(word in str(caught.value) for word in words), str(caught.value)
        assert "\n" not in str(caught.value)

    def test_shape_that_the_network_expects(self) -> None:
        """The expected shape is without the batch; the right one passes."""
        collect(images(), expected=[(3, 4, 5)])
        with pytest.raises(CalibrationError, match=r"\(N, 3, 4, 5\), expected \(N, 3, 8, 8\)"):
            collect(images(), expected=[(3, 8, 8)])

    @pytest.mark.parametrize("count", [1, 3])
    def test_per_source_needs_one_data_set_a_source(self, count: int) -> None:
        """Otherwise a source's own images would be missing, or owned by nobody."""
        collect(PerSource([images()] * 2), sources=2)
        with pytest.raises(CalibrationError, match=f"{count} data sets for 2 models"):
            collect(PerSource([images()] * count), sources=2)

    def test_batches_hold_at_least_one_example(self) -> None:
        """A batch size of 0 is an option out of range."""
        with pytest.raises(OptionError, match="batch_size must be at least 1"):
            collect(images(), batch_size=0)

    def test_too_few_inputs(self) -> None:
        """A network of two inputs needs two tensors a batch."""
        with pytest.raises(CalibrationError, match="batch 0 has 1 tensors, the network takes 2"):
            collect([images()], inputs=2)

    def test_inputs_of_different_length(self) -> None:
        """Inputs of one batch belong to the same examples."""
        with pytest.raises(CalibrationError, match="different lengths"):
            collect((images(4), images(5)), inputs=2)

    def test_second_input_is_checked_too(self) -> None:
        """NaN in the second input is found, and its number said."""
        with pytest.raises(CalibrationError, match="input 1 has NaN"):
            collect((images(), spoiled(float("nan"))), inputs=2)

    def test_interrupts_pass_through(self) -> None:
        """Negative control: only errors become CalibrationError."""

        def stopped() -> Iterator[Tensor]:
            raise KeyboardInterrupt
            yield images()

        with pytest.raises(KeyboardInterrupt):
            collect(stopped())


def test_per_source_cannot_be_edited() -> None:
    """A frozen value: what was checked stays what it was."""
    data = PerSource([images()])
    assert isinstance(data.sources, tuple)
    with pytest.raises(AttributeError):
        data.sources = ()  # type: ignore[misc]


def test_every_nth_and_joined_again() -> None:
    """Owners stay with their images; joining stops at other owners and at the size asked for."""
    images = torch.arange(14.0).reshape(14, 1)
    cut = (images[:4], images[4:8], images[8:10], images[10:13], images[13:])
    data = Batches(tuple((part,) for part in cut), (0, 0, 0, 1, 1))
    thinned = data.every(2)
    assert [batch[0].flatten().tolist() for batch in thinned.batches] == [
        [0, 2], [4, 6], [8], [10, 12], [13],
    ]  # fmt: skip
    assert data.every(2, 1).owners == (0, 0, 0, 1)
    joined = thinned.joined(4)
    assert [batch[0].flatten().tolist() for batch in joined.batches] == [
        [0, 2, 4, 6], [8], [10, 12, 13],
    ]  # fmt: skip
    assert joined.owners == (0, 0, 1)
    assert [len(batch[0]) for batch in thinned.joined(1).batches] == [2, 2, 1, 2, 1]
