"""Reader of text tables: separated columns without quoting, checked line by line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ..._files import open_file

_NAMES = {b"\t": "tabs", b" ": "blanks"}


def read_table(
    path: Path, columns: Sequence[str], *, header: bool, separator: bytes = b"\t"
) -> Iterator[tuple[int, list[bytes]]]:
    """The lines of a file: number from 1, and one field per column, valid UTF-8 but not decoded.

    Args:
        path: the file.
        columns: their names.
        header: whether the first line holds the names.
        separator: a tab or a blank.

    Raises:
        ValueError: the file is empty, or a line has another number of fields or is not UTF-8; the message names file
            and line.
        OSError: the file cannot be read.
    """
    line = 0
    with open_file(path) as file:
        for line, content in enumerate(file, start=1):
            fields = content.rstrip(b"\r\n").split(separator)
            _check(fields, columns, content, f"{path}, line {line}", _NAMES[separator])
            if not header or line > 1:
                yield line, fields
            elif fields != [name.encode() for name in columns]:
                raise ValueError(f"{path}, line 1: the header must be {_joined(columns)}; got {content[:80]!r}")
    if line <= header:
        raise ValueError(f"{path} is empty; it must hold lines of {_joined(columns)}")


def _joined(columns: Sequence[str]) -> str:
    return ", ".join(columns)


def _check(fields: list[bytes], columns: Sequence[str], content: bytes, where: str, between: str) -> None:
    if len(fields) != len(columns):
        raise ValueError(
            f"{where}: {len(columns)} columns with {between} between are expected ({_joined(columns)}); "
            f"got {len(fields)}"
        )
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8 (byte {error.start}: {error.reason}); fix or remove it") from error
