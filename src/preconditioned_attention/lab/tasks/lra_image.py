"""The task Image of the Long Range Arena: CIFAR-10 in gray, pixel by pixel.

As in Nystromformer's runs id 0, a black pixel, counts as padding: attention and the sum over tokens ignore it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from ..._checks import check_integer
from ..data.cifar10 import PIXELS, read_cifar10
from ..data.sequences import Sequences, collate_sequences
from .lra import LongRangeTask
from .task import Splits


@dataclass(frozen=True, kw_only=True)
class Image(LongRangeTask):
    """The ``lra-image`` task. The last tenth of the training images is the validation split.

    Args:
        data: the folder ``cifar-10-batches-py``, or one with the parquet files of ``uoft-cs/cifar10``.
        positions, attention, ...: the model's; see :class:`LongRangeTask`.
    """

    positions: int = PIXELS

    name: ClassVar[str] = "lra-image"
    vocabulary: ClassVar[int] = 512
    classes: ClassVar[int] = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("positions", self.positions, minimum=PIXELS)

    def datasets(self) -> Splits:
        """Gray values and the class."""
        train, test = _read(self.folder("the folder cifar-10-batches-py, or one with the hub's parquet files"))
        size = len(train) * 9 // 10
        first = Sequences(train.ids[:size], train.labels[:size])
        return Splits(first, Sequences(train.ids[size:], train.labels[size:]), test, collate_sequences)


@lru_cache(maxsize=1)
def _read(folder: Path) -> tuple[Sequences, Sequences]:
    return read_cifar10(folder, "train"), read_cifar10(folder, "test")
