"""Hugging Face datasets of token ids, such as the one that crammed BERT was pretrained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..._extras import require
from ..._files import open_file
from .hub import open_saved

COLUMN = "input_ids"
HELD_OUT_EVERY = 1000  # rows: of each run of so many the first validates and the second tests


class TokenizedRows(Dataset[Tensor]):
    """One part of the rows of a data set: ``"train"``, ``"validation"`` or ``"test"``; each row ``(length,)`` tokens.

    Args:
        rows: from :func:`open_tokenized`.
        part: which rows.
        length: how many tokens every row must have.
        vocab_size: tokens are less than this.
        name: of the data set, in errors.

    Raises:
        ValueError: there are too few rows to hold some out.
    """

    def __init__(self, rows: Any, part: str, *, length: int, vocab_size: int, name: str = "the data set") -> None:
        if len(rows) <= HELD_OUT_EVERY:
            raise ValueError(f"{name} must have more than {HELD_OUT_EVERY} rows; got {len(rows)}")
        self._vocab_size = vocab_size
        self._name = name
        self._rows = rows
        self._length = length
        self._first = {"train": 2, "validation": 0, "test": 1}[part]

    def __len__(self) -> int:
        if self._first < 2:
            return -(-(len(self._rows) - self._first) // HELD_OUT_EVERY)
        blocks, rest = divmod(len(self._rows), HELD_OUT_EVERY)
        return blocks * (HELD_OUT_EVERY - 2) + max(0, rest - 2)

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < len(self):
            raise IndexError(f"index must be 0 to {len(self) - 1}; got {index}")
        inside = HELD_OUT_EVERY - 2 if self._first == 2 else 1
        number = index // inside * HELD_OUT_EVERY + self._first + index % inside
        found = self._rows[number][COLUMN]
        where = f"{self._name}, row {number}: {COLUMN} must hold {self._length} tokens"
        if not isinstance(found, list) or len(found) != self._length:
            got = len(found) if isinstance(found, list) else repr(found)[:80]
            raise ValueError(f"{where}; got {got}")
        wrong = [token for token in found if type(token) is not int or not 0 <= token < self._vocab_size]
        if wrong:
            raise ValueError(f"{where}, whole numbers from 0 to {self._vocab_size - 1}; got {wrong[0]!r:.80}")
        return torch.tensor(found)


def open_tokenized(root: Path) -> Any:
    """The rows of a folder: what ``save_to_disk`` of ``datasets`` wrote, or ``*.parquet``, also in ``data/``.

    Raises:
        FileNotFoundError: it holds neither. OSError: it cannot be read. ValueError: there is no column
            ``input_ids``.
    """
    parquet = sorted(str(path) for folder in (root, root / "data") for path in folder.glob("*.parquet"))
    if (root / "dataset_info.json").exists():
        rows = open_saved(root)
    elif parquet:
        rows = _load_parquet(root, parquet)
    else:
        raise FileNotFoundError(f"{root} holds no data set; expected *.parquet, data/*.parquet or dataset_info.json")
    if COLUMN not in rows.column_names:
        raise ValueError(f"{root} must have the column {COLUMN!r}; got {', '.join(rows.column_names)}")
    return rows


def _load_parquet(root: Path, files: list[str]) -> Any:
    library = require("datasets", extra="language")
    for file in files:
        open_file(file).close()  # not a pipe, which would be waited for
    try:
        return library.load_dataset("parquet", data_files=files, split="train")
    except Exception as error:  # pyarrow and datasets raise errors of many kinds
        reason = error.__cause__ or error  # datasets says no more than that it failed
        raise OSError(f"the parquet files in {root} cannot be read as one data set: {reason}") from error
