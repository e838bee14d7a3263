"""scikit-learn's 1,797 handwritten digits, enlarged from 8 x 8 to the size of the others."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.accuracy.data import Images, ImageSet, MissingDataError

TEST = 600
INNER, SIZE = 20, 28


def digits() -> ImageSet:
    """A fixed split into training and test images.

    Raises:
        MissingDataError: scikit-learn isn't installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingDataError(
            "the set 'digits' comes with scikit-learn: pip install 'pleas-fx[benchmarks]'"
        ) from error
    found = load_digits()
    small = torch.from_numpy(np.asarray(found.images, dtype=np.float32)).unsqueeze(1) * (255 / 16)
    large = F.interpolate(small, (INNER, INNER), mode="bilinear", align_corners=False)
    border = (SIZE - INNER) // 2
    pixels = F.pad(large, (border,) * 4).squeeze(1).round().clamp(0, 255).numpy().astype(np.uint8)
    labels = np.asarray(found.target, dtype=np.int64)
    order = np.random.default_rng(0).permutation(len(labels))
    train, test = order[TEST:], order[:TEST]
    return ImageSet(Images(pixels[train], labels[train]), Images(pixels[test], labels[test]))
