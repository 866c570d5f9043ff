"""The task Retrieval of the Long Range Arena: does one paper cite the other? Byte by byte."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from ..data.aan import Pairs, read_aan
from ..data.sequences import collate_sequences
from .lra import LongRangeTask
from .task import Splits

TEXT_LENGTH = 4000


@dataclass(frozen=True, kw_only=True)
class Retrieval(LongRangeTask):
    """The ``lra-retrieval`` task.

    Args:
        data: the folder ``tsv_data`` of the release; of a text the first 4000 bytes are read.
        positions, attention, ...: the model's; see :class:`LongRangeTask`.
    """

    positions: int = 4096

    name: ClassVar[str] = "lra-retrieval"
    vocabulary: ClassVar[int] = 512
    classes: ClassVar[int] = 2
    inputs: ClassVar[int] = 2

    def datasets(self) -> Splits:
        """Ids of the bytes of two texts, and 1 if there is a citation."""
        folder = self.folder("the folder with new_aan_pairs.train.tsv, new_aan_pairs.eval.tsv, new_aan_pairs.test.tsv")
        train, validation, test = _read(folder, min(TEXT_LENGTH, self.positions))
        return Splits(train, validation, test, collate_sequences)


@lru_cache(maxsize=1)
def _read(folder: Path, length: int) -> tuple[Pairs, Pairs, Pairs]:
    train, validation, test = (read_aan(folder, split, length=length) for split in ("train", "eval", "test"))
    return train, validation, test
