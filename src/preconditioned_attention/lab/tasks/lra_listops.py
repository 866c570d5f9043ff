"""The task ListOps of the Long Range Arena: predict the value of an expression of nested list operations."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import ClassVar

from ..data.listops import SPLITS, ListOpsOptions, encode_listops, make_listops, read_listops
from ..data.sequences import Sequences, collate_sequences
from .lra import LongRangeTask, lookup_accuracy
from .task import Splits


@dataclass(frozen=True, kw_only=True)
class ListOps(LongRangeTask):
    """The ``lra-listops`` task.

    Args:
        data: the folder with ``basic_{train,val,test}.tsv``; None: expressions are generated when the task is used, by
            the options below, which must keep their defaults if there is a folder.
        count, held_out, data_seed, min_length, max_length: of
            :class:`preconditioned_attention.lab.data.listops.ListOpsOptions`; ``data_seed`` is its ``seed``.
        positions, attention, ...: the model's; see :class:`LongRangeTask`.

    Raises:
        TypeError, ValueError: an option has a value it cannot have; the message names it.
    """

    positions: int = 2048
    count: int = 96_000
    held_out: int = 2_000
    data_seed: int = 0
    min_length: int = 501
    max_length: int = 1999

    name: ClassVar[str] = "lra-listops"
    vocabulary: ClassVar[int] = 32
    classes: ClassVar[int] = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        options = self._generation
        if self.data is not None and options != ListOpsOptions():
            raise ValueError(
                f"data names the folder {self.data}, so count, held_out, data_seed, min_length and max_length, which "
                "are those of generated expressions, must be left out"
            )
        if self.data is None and options.max_length > self.positions:
            raise ValueError(f"max_length must be at most positions = {self.positions}; got {options.max_length}")

    @property
    def _generation(self) -> ListOpsOptions:
        return ListOpsOptions(
            count=self.count,
            held_out=self.held_out,
            seed=self.data_seed,
            min_length=self.min_length,
            max_length=self.max_length,
        )

    def datasets(self) -> Splits:
        """Ids of tokens and the value of the expression, 0 to 9."""
        if self.data is None:
            train, validation, test = _generate(self._generation)
            return Splits(train, validation, test, collate_sequences)
        train, validation, test = _read(
            self.folder("the folder with basic_train.tsv, basic_val.tsv and basic_test.tsv")
        )
        longest = max(len(ids) for split in (train, validation, test) for ids in split.ids)
        if longest > self.positions:
            raise ValueError(f"positions must be at least {longest}, the longest expression; got {self.positions}")
        return Splits(train, validation, test, collate_sequences)

    def baselines(self) -> dict[str, float]:
        """The test accuracy of the most frequent value, and of the value most frequent for the outermost operator."""
        splits = self.datasets()
        train, test = splits.train, splits.test
        assert isinstance(train, Sequences)
        assert isinstance(test, Sequences)
        roots = lookup_accuracy((ids[0] for ids in train.ids), train.labels, (ids[0] for ids in test.ids), test.labels)
        return {**super().baselines(), "root operator": roots}


@lru_cache(maxsize=2)
def _generate(options: ListOpsOptions) -> tuple[Sequences, Sequences, Sequences]:
    expressions = make_listops(options)
    train, validation, test = (encode_listops(islice(expressions, size)) for size in options.sizes)
    return train, validation, test


@lru_cache(maxsize=2)
def _read(folder: Path) -> tuple[Sequences, Sequences, Sequences]:
    train, validation, test = (read_listops(folder, split) for split in SPLITS)
    return train, validation, test
