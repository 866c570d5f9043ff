"""Rows of a data set in the layout of the Hugging Face hub: parquet files in a folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..._extras import require
from .image_files import check_regular, one_line

FOLDERS = (".", "data", "plain_text")  # in which repositories of the hub have their files


def find_parquet(root: Path, split: str) -> list[Path]:
    """``SPLIT-*.parquet`` in ``root``, in ``data/`` or in ``plain_text/``; empty if there are none.

    Raises:
        ValueError: more than one of these folders has them.
    """
    found = [files for folder in FOLDERS if (files := sorted((root / folder).glob(f"{split}-*.parquet")))]
    if len(found) > 1:
        places = " and ".join(str(files[0].parent) for files in found)
        raise ValueError(f"{root} holds the {split} split more than once, in {places}; keep one of them")
    return found[0] if found else []


def read_parquet(files: Sequence[Path], columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every row, with its file and number for messages; images as they are stored: ``{"bytes": ..., "path": ...}``.

    Raises:
        ValueError: a row lacks one of ``columns``, or there are no rows; the message names file and row.
        OSError: a file cannot be read.
        ImportError: the extra ``language`` is missing.
    """
    library = require("datasets", extra="language")
    for path in files:
        number = 0
        for number, row in enumerate(_rows(path, library), start=1):
            where = f"{path}, row {number}"
            missing = [name for name in columns if row.get(name) is None]
            if missing:
                names = ", ".join(map(repr, missing))
                raise ValueError(f"{where}: the column {names} is missing or holds nothing (columns: {', '.join(row)})")
            yield where, row
        if not number:
            raise ValueError(f"{path} holds no rows")


def open_saved(folder: Path) -> Any:
    """The rows of a folder that ``save_to_disk`` of ``datasets`` wrote.

    Raises:
        OSError: it cannot be read. ImportError: the extra ``language`` is missing.
    """
    library = require("datasets", extra="language")
    try:
        return library.load_from_disk(str(folder))
    except Exception as error:  # pyarrow and datasets raise errors of many kinds
        raise OSError(f"{folder} cannot be read as a saved data set: {one_line(error)}") from error


def text_in(row: dict[str, Any], name: str, where: str) -> str:
    """The text in a row's column ``name``.

    Raises:
        ValueError: it holds something else, such as numbers; the message begins with ``where``.
    """
    text = row.get(name)
    if not isinstance(text, str):
        raise ValueError(
            f"{where}: the column {name!r} must hold text; got {text!r:.80} of type {type(text).__name__} "
            f"(columns: {', '.join(row)})"
        )
    return text


def _rows(path: Path, library: Any) -> Iterator[dict[str, Any]]:
    try:
        check_regular(path)
        if not require("pyarrow.parquet", extra="language").ParquetFile(path).metadata.num_rows:
            return  # datasets fails where there are no rows
        rows = library.load_dataset("parquet", data_files=str(path), split="train", streaming=True)
        for name, feature in (rows.features or {}).items():
            if isinstance(feature, library.Image):
                rows = rows.cast_column(name, library.Image(decode=False))
        yield from rows
    except Exception as error:  # pyarrow and datasets raise errors of many kinds, also in the middle of a file
        raise OSError(f"{path} cannot be read: {one_line(error)}") from error
