"""Hugging Face datasets of token ids, such as the one that crammed BERT was pretrained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..._extras import require

COLUMN = "input_ids"
HELD_OUT_EVERY = 1000  # rows: of each run of so many the first validates and the second tests


class TokenizedRows(Dataset[Tensor]):
    """One part of the rows of a data set: ``"train"``, ``"validation"`` or ``"test"``; each row ``(length,)`` tokens.

    Args:
        rows: from :func:`open_tokenized`.
        part: which rows.
        length: how many tokens every row must have.

    Raises:
        ValueError: there are too few rows to hold some out.
    """

    def __init__(self, rows: Any, part: str, *, length: int) -> None:
        if len(rows) <= HELD_OUT_EVERY:
            raise ValueError(f"the data set must have more than {HELD_OUT_EVERY} rows; got {len(rows)}")
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
        tokens = torch.tensor(self._rows[number][COLUMN], dtype=torch.long)
        if tokens.shape != (self._length,):
            raise ValueError(f"row {number}: {COLUMN} must hold {self._length} tokens; got {tuple(tokens.shape)}")
        return tokens


def open_tokenized(root: Path) -> Any:
    """The rows of a folder: what ``save_to_disk`` of ``datasets`` wrote, or ``*.parquet``, also in ``data/``.

    Raises:
        FileNotFoundError: it holds neither. ValueError: there is no column ``input_ids``.
    """
    library = require("datasets", extra="language")
    parquet = sorted(str(path) for folder in (root, root / "data") for path in folder.glob("*.parquet"))
    if (root / "dataset_info.json").exists():
        rows = library.load_from_disk(str(root))
    elif parquet:
        rows = library.load_dataset("parquet", data_files=parquet, split="train")
    else:
        raise FileNotFoundError(f"{root} holds no data set; expected *.parquet, data/*.parquet or dataset_info.json")
    if COLUMN not in rows.column_names:
        raise ValueError(f"{root} must have the column {COLUMN!r}; got {', '.join(rows.column_names)}")
    return rows
