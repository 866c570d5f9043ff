"""scikit-learn's handwritten digits: 1797 real gray images of 8 x 8 pixels, ten classes, bundled with the library.

Source: the test set of E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
Repository, 1998 (CC BY 4.0), as :func:`sklearn.datasets.load_digits` gives it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch.utils.data import TensorDataset

from ..._checks import check_integer
from ..._extras import require

if TYPE_CHECKING:
    from PIL.Image import Image

VALIDATION_SIZE = 300
TEST_SIZE = 300
MAX_PIXEL = 16.0
LARGEST_SEED = 2**32 - 1  # that scikit-learn takes


def load_digits(*, split_seed: int = 0) -> tuple[TensorDataset, TensorDataset, TensorDataset]:
    """Train (1197), validation (300) and test (300) examples of handwritten digits, split by class.

    Args:
        split_seed: decides the split alone, so that runs of different seeds are tested on the same images.

    Returns:
        Three datasets of pairs: image, float32 in [-1, 1], shape ``(1, 8, 8)``; label, int64 in 0 to 9.
    """
    check_split_seed(split_seed)
    datasets = require("sklearn.datasets", extra="vision")
    selection = require("sklearn.model_selection", extra="vision")
    pixels, labels = datasets.load_digits(return_X_y=True)
    rest, test = selection.train_test_split(
        range(len(labels)), test_size=TEST_SIZE, stratify=labels, random_state=split_seed
    )
    train, validation = selection.train_test_split(
        rest, test_size=VALIDATION_SIZE, stratify=labels[rest], random_state=split_seed
    )
    images = torch.from_numpy(pixels).float().reshape(-1, 1, 8, 8) / (MAX_PIXEL / 2) - 1
    targets = torch.from_numpy(labels).long()
    return (
        TensorDataset(images[train], targets[train]),
        TensorDataset(images[validation], targets[validation]),
        TensorDataset(images[test], targets[test]),
    )


def check_split_seed(seed: object) -> None:
    """Raise ``TypeError`` or ``ValueError`` unless ``seed`` is an integer from 0 to 2**32 - 1."""
    if check_integer("split_seed", seed, minimum=0) > LARGEST_SEED:
        raise ValueError(f"split_seed must be at most {LARGEST_SEED}; got {seed}")


class DigitImages:
    """One split of :func:`load_digits` as RGB images of 8 x 8 pixels, for pipelines that begin with images.

    Args:
        split: ``"train"``, ``"validation"`` or ``"test"``.
        split_seed: as in :func:`load_digits`.
    """

    classes = tuple("0123456789")

    def __init__(self, split: Literal["train", "validation", "test"], *, split_seed: int = 0) -> None:
        parts = dict(zip(("train", "validation", "test"), load_digits(split_seed=split_seed), strict=True))
        pixels, self._labels = parts[split].tensors
        self._pixels = ((pixels[:, 0] + 1) * 127.5).round().to(torch.uint8)

    def __len__(self) -> int:
        return len(self._labels)

    def read(self, index: int) -> tuple[Image, int]:
        """The image and its label."""
        image = require("PIL.Image", extra="vision").fromarray(self._pixels[index].numpy())
        return image.convert("RGB"), int(self._labels[index])
