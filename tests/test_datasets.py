"""Calibration data from specifications: the pixels a network was trained on, or one clear line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from pleas_fx.datasets import IMAGENET_MEAN, IMAGENET_STD, load_calibration, load_labels
from pleas_fx.errors import CalibrationError, OptionError, PleasError, SourceError


def pixels(*shape: int) -> np.ndarray:
    """Random bytes."""
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def loaded(spec: object, **options: object) -> Tensor:
    """The calibration data as the tensor it is."""
    found = load_calibration(str(spec), **options)  # type: ignore[arg-type]
    assert isinstance(found, Tensor)
    return found


def standardised(data: np.ndarray, mean: object, std: object) -> Tensor:
    """Bytes (N, C, H, W) as training scripts prepare them."""
    shape = (1, -1, 1, 1)
    scaled = torch.from_numpy(data.astype(np.float32)) / 255
    return (scaled - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)


class TestImageFolders:
    """A folder of images."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """Colour and grey images of several sizes and formats, in folders, with other files."""
        (tmp_path / "b").mkdir()
        for number, (name, mode, size) in enumerate(
            [("z.png", "RGB", (8, 8)), ("b/a.jpg", "L", (9, 5)), ("a.PNG", "RGBA", (20, 30))]
        ):
            Image.new(mode, size, (40 * number + 10,) * len(mode)).save(tmp_path / name)
        (tmp_path / "notes.txt").write_text("not an image")
        return tmp_path

    def test_are_sorted_resized_and_normalised(self, folder: Path) -> None:
        """Order by path; each a constant picture, so its value tells which one it is."""
        found = loaded(folder, input_shape=(3, 6, 7))
        assert found.shape == (3, 3, 6, 7)
        assert found.dtype == torch.float32
        values = np.array([90, 50, 10], np.uint8).reshape(3, 1, 1, 1)  # a.PNG, b/a.jpg, z.png
        expected = standardised(np.tile(values, (1, 3, 6, 7)), IMAGENET_MEAN, IMAGENET_STD)
        assert torch.allclose(found, expected, atol=1e-5)

    def test_grey_networks_get_grey_images(self, folder: Path) -> None:
        """One channel; without mean and std in [0, 1]."""
        found = loaded(folder, input_shape=(1, 6, 7))
        assert found.shape == (3, 1, 6, 7)
        assert torch.allclose(found[:, 0, 0, 0] * 255, torch.tensor([90.0, 50.0, 10.0]))

    def test_own_mean_and_std(self, folder: Path) -> None:
        """One number serves all channels."""
        found = loaded(folder, input_shape=(3, 6, 7), mean=[0.5], std=[0.25])
        assert torch.allclose(found[2], torch.full((3, 6, 7), (10 / 255 - 0.5) / 0.25))

    def test_samples_are_spread(self, folder: Path) -> None:
        """Some of the images; never more than there are."""
        assert len(loaded(folder, input_shape=(3, 4, 4), samples=2)) == 2
        assert len(loaded(folder, input_shape=(3, 4, 4), samples=99)) == 3

    @pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\nbroken"])
    def test_broken_images_are_named(self, folder: Path, content: bytes) -> None:
        """Not skipped: the user decides."""
        (folder / "broken.png").write_bytes(content)
        with pytest.raises(CalibrationError, match=r"broken\.png: can't be read as an image"):
            loaded(folder, input_shape=(3, 4, 4))

    def test_no_images(self, tmp_path: Path) -> None:
        """An empty folder is an error."""
        with pytest.raises(CalibrationError, match="has no images"):
            loaded(tmp_path, input_shape=(3, 4, 4))

    def test_without_a_size_all_images_must_agree(self, folder: Path) -> None:
        """The first that differs is named."""
        with pytest.raises(CalibrationError, match=r"a\.jpg: has another size than a\.PNG"):
            loaded(folder)

    @pytest.mark.parametrize(
        ("options", "word"),
        [
            ({"input_shape": (4, 4, 4)}, "1 or 3 channels"),
            ({"input_shape": (10,)}, "(C, H, W)"),
            ({"input_shape": (3, 4, 4), "mean": [0.1, 0.2]}, "mean has 2 values"),
            ({"input_shape": (3, 4, 4), "std": [0.0]}, "std must be positive"),
            ({"input_shape": (3, 4, 4), "samples": 0}, "at least 1"),
        ],
    )
    def test_wrong_options(self, folder: Path, options: dict[str, object], word: str) -> None:
        """Each says what would be right."""
        with pytest.raises(OptionError) as caught:
            loaded(folder, **options)
        assert word in str(caught.value)


class TestArrays:
    """``.npz``, ``.npy``, ``.safetensors``, ``.pt``."""

    @pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors", ".pt"])
    def test_floating_point_stays_as_it_is(self, tmp_path: Path, suffix: str) -> None:
        """Whoever stores floats has normalised them."""
        data, path = torch.randn(4, 3, 5, 6), tmp_path / f"data{suffix}"
        if suffix == ".npy":
            np.save(path, data.numpy())
        elif suffix == ".npz":
            np.savez(path, images=data.numpy(), labels=np.arange(4))
        elif suffix == ".pt":
            torch.save(data, path)
        else:
            save_file({"x": data, "labels": torch.arange(4)}, path)
        assert torch.equal(loaded(path), data)
        assert torch.equal(loaded(path, samples=2), data[::2])

    def test_floats_are_normalised_on_request(self, tmp_path: Path) -> None:
        """Explicit mean and std apply to floats in [0, 1] too."""
        np.save(tmp_path / "d.npy", np.full((2, 1, 3, 3), 0.75, np.float32))
        found = loaded(tmp_path / "d.npy", mean=[0.5], std=[0.5])
        assert torch.allclose(found, torch.full((2, 1, 3, 3), 0.5))

    @pytest.mark.parametrize(
        ("shape", "order"),
        [((5, 6, 7), None), ((5, 6, 7, 3), (0, 3, 1, 2)), ((5, 6, 7, 1), (0, 3, 1, 2)),
         ((5, 3, 6, 7), (0, 1, 2, 3)), ((5, 1, 6, 7), (0, 1, 2, 3))],
    )  # fmt: skip
    def test_bytes_in_every_layout(
        self, tmp_path: Path, shape: tuple[int, ...], order: tuple[int, ...] | None
    ) -> None:
        """Channels come first, pixels in [0, 1], then mean and std."""
        data = pixels(*shape)
        np.save(tmp_path / "d.npy", data)
        expected = data[:, None] if order is None else data.transpose(order)
        colour = expected.shape[1] == 3
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if colour else ((0.0,), (1.0,))
        found = loaded(tmp_path / "d.npy")
        assert torch.allclose(found, standardised(expected, mean, std), atol=1e-5)

    def test_grey_bytes_for_a_colour_network(self, tmp_path: Path) -> None:
        """Repeated over the three channels, then normalised as colour."""
        data = pixels(4, 5, 6)
        np.save(tmp_path / "d.npy", data)
        found = loaded(tmp_path / "d.npy", input_shape=(3, 5, 6))
        expected = standardised(np.repeat(data[:, None], 3, 1), IMAGENET_MEAN, IMAGENET_STD)
        assert torch.allclose(found, expected, atol=1e-5)

    def test_keys(self, tmp_path: Path) -> None:
        """A key picks an entry; a wrong or missing one gets the right ones as an answer."""
        path = tmp_path / "d.npz"
        first, second = np.zeros((1, 2), np.float32), np.ones((1, 2), np.float32)
        np.savez(path, calibration_a=first, calibration_b=second)
        assert torch.equal(loaded(f"{path}:calibration_b"), torch.ones(1, 2))
        with pytest.raises(SourceError, match="did you mean calibration_b"):
            loaded(f"{path}:calibration_bb")
        with pytest.raises(SourceError, match="calibration_a, calibration_b; add :KEY"):
            loaded(path)

    def test_big_endian_arrays(self, tmp_path: Path) -> None:
        """PyTorch takes native order only; the values stay."""
        np.save(tmp_path / "d.npy", np.arange(6, dtype=">f4").reshape(2, 3))
        assert torch.equal(loaded(tmp_path / "d.npy"), torch.arange(6.0).view(2, 3))

    @pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors", ".pt"])
    @pytest.mark.parametrize("content", [b"", b"nothing of the kind"])
    def test_broken_files_are_named(self, tmp_path: Path, suffix: str, content: bytes) -> None:
        """Whatever the reader raises, the user sees one line."""
        path = tmp_path / f"broken{suffix}"
        path.write_bytes(content)
        with pytest.raises(SourceError, match="broken") as caught:
            loaded(path)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("suffix", [".npy", ".npz"])
    def test_object_arrays_are_not_unpickled(self, tmp_path: Path, suffix: str) -> None:
        """allow_pickle stays off, and the mark isn't made; with it on, it is."""
        mark = tmp_path / "executed"
        array = np.array([_Hostile(mark)], dtype=object)
        path = tmp_path / f"evil{suffix}"
        if suffix == ".npy":
            np.save(path, array, allow_pickle=True)
        else:
            np.savez(path, images=array)
        with pytest.raises(SourceError, match=r"evil.*Python objects"):
            loaded(path)
        assert not mark.exists()
        found = np.load(path, allow_pickle=True)  # negative control
        assert found is not None
        if suffix == ".npz":
            found["images"]
        assert mark.exists()

    @pytest.mark.parametrize("shape", [(5,), (5, 6), (5, 6, 7, 8, 9)])
    def test_bytes_of_other_ranks(self, tmp_path: Path, shape: tuple[int, ...]) -> None:
        """Images have three or four dimensions with the batch."""
        np.save(tmp_path / "d.npy", pixels(*shape))
        with pytest.raises(CalibrationError, match="uint8 pixels need shape"):
            loaded(tmp_path / "d.npy")


class _Hostile:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        import os

        return os.mkdir, (str(self.mark),)


class TestLoadersAndLabels:
    """``file.py:loader`` and labels."""

    def test_loaders_give_whatever_collect_takes(self, tmp_path: Path) -> None:
        """Functions are called, values are taken as they are."""
        path = tmp_path / "data.py"
        path.write_text("DATA = [1]\ndef make(): return {'x': 2}\n")
        assert load_calibration(f"{path}:DATA") == [1]
        assert load_calibration(f"{path}:make") == {"x": 2}

    @pytest.mark.parametrize(
        ("spec", "word"),
        [("none", "no such file or folder"), ("none.npy", "no such file"), ("n.py:f", "no such")],
    )
    def test_missing_files(self, spec: str, word: str) -> None:
        """Named, whatever the kind."""
        with pytest.raises(SourceError, match=word):
            load_calibration(spec)

    def test_a_file_of_another_kind(self, tmp_path: Path) -> None:
        """The kinds that can be read are listed."""
        path = tmp_path / "data.csv"
        path.write_text("1,2")
        with pytest.raises(SourceError, match=r"data\.csv: expected a folder of images"):
            load_calibration(str(path))

    def test_labels(self, tmp_path: Path) -> None:
        """Bytes and other whole numbers become int64."""
        np.savez(tmp_path / "l.npz", images=pixels(3, 2, 2), labels=np.array([2, 0, 1], np.uint8))
        found = load_labels(str(tmp_path / "l.npz"))
        assert found.tolist() == [2, 0, 1]
        assert found.dtype == torch.int64

    @pytest.mark.parametrize("wrong", [np.zeros((2, 2), np.int64), np.zeros(3, np.float32)])
    def test_wrong_labels(self, tmp_path: Path, wrong: np.ndarray) -> None:
        """One whole number an example."""
        np.save(tmp_path / "l.npy", wrong)
        with pytest.raises(PleasError, match="whole numbers of shape"):
            load_labels(str(tmp_path / "l.npy"))
