"""The task Text of the Long Range Arena: is a review of IMDb positive? Byte by byte."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from ..data.imdb import read_imdb
from ..data.sequences import Sequences, collate_sequences
from .lra import LongRangeTask
from .task import Splits

TEXT_LENGTH = 4000


@dataclass(frozen=True, kw_only=True)
class Text(LongRangeTask):
    """The ``lra-text`` task. As in the benchmark the test split is the validation split too: what is selected on it is
    tested on it.

    Args:
        data: the folder ``aclImdb``, or one with the parquet files of ``stanfordnlp/imdb``; of a review the first 4000
            bytes are read.
        positions, attention, ...: the model's; see :class:`LongRangeTask`.
    """

    positions: int = 4096

    name: ClassVar[str] = "lra-text"
    vocabulary: ClassVar[int] = 512
    classes: ClassVar[int] = 2

    def datasets(self) -> Splits:
        """Ids of bytes, and 1 for a positive review."""
        folder = self.folder("the folder aclImdb with train/ and test/, or one with the hub's parquet files")
        train, test = _read(folder, min(TEXT_LENGTH, self.positions))
        return Splits(train, test, test, collate_sequences)


@lru_cache(maxsize=1)
def _read(folder: Path, length: int) -> tuple[Sequences, Sequences]:
    return read_imdb(folder, "train", length=length), read_imdb(folder, "test", length=length)
