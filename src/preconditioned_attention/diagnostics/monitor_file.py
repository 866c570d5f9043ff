"""The monitor's records as a CSV file, complete up to the last record also after a kill."""

from __future__ import annotations

import contextlib
import csv
import io
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO, get_type_hints

from .._files import read_text, write_atomically
from .monitor_records import Record

_TYPES = get_type_hints(Record)


class RecordFile:
    """Appends records to a CSV file, which holds every record that was added, also after a kill.

    Args:
        path: the file; it is rewritten with ``kept`` first.
        kept: the records that it holds at first.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, kept: Sequence[Record] = ()) -> None:
        self.path = path
        write_atomically(path, _line(Record._fields) + _lines(kept))
        self._file: TextIO = path.open("a", encoding="utf-8", newline="")

    def add(self, records: Sequence[Record]) -> None:
        """Append ``records``; a reader of the file sees them at once.

        Raises:
            OSError: the file cannot be written; its former content is kept.
        """
        try:
            self._file.write(_lines(records))
            self._file.flush()
        except OSError as error:
            raise OSError(
                error.errno, f"the monitor's records could not be written: {error.strerror}", str(self.path)
            ) from error

    def synchronize(self) -> None:
        """Flush the records to the disk (``fsync``).

        Raises:
            OSError: the disk does not take them.
        """
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def close(self) -> None:
        """Close the file. What a full disk did not take was an error of :meth:`add`, and is none again here."""
        with contextlib.suppress(OSError):
            self._file.close()


def read_records(path: Path | str) -> list[Record]:
    """The records in a file; a last line that a kill left unfinished is left out.

    Raises:
        ValueError: it is not such a file, or a line cannot be parsed.
        OSError: it cannot be read.
    """
    text = read_text(path)
    try:
        lines = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1])))
    except csv.Error as error:
        raise ValueError(f"{path} is not a file of the condition monitor: {error}") from error
    if not lines or tuple(lines[0]) != Record._fields:
        raise ValueError(f"{path} is not a file of the condition monitor: its first line must name {Record._fields}")
    records = []
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(Record._fields):
            raise ValueError(f"line {number} of {path} has {len(line)} cells; {len(Record._fields)} were expected")
        try:
            records.append(Record(*map(_value, Record._fields, line)))
        except ValueError as error:
            raise ValueError(f"line {number} of {path} is not a record: {error}") from error
    return records


def merge_records(paths: Iterable[Path | str], output: Path | str) -> int:
    """Merge the files that several processes wrote into one, in the order of steps and processes.

    Returns:
        How many records ``output`` holds.

    Raises:
        ValueError: no file, one that the monitor did not write, or two with records of the same matrix.
        OSError: a file cannot be read or ``output`` cannot be written.
    """
    files = list(paths)
    if not files:
        raise ValueError("paths must name at least one file of the condition monitor; got none")
    records = [record for path in files for record in read_records(path)]
    keys = [record[: Record._fields.index("rows")] for record in records]
    if len(set(keys)) != len(keys):
        raise ValueError(f"the files overlap: some matrix is recorded twice in {', '.join(map(str, files))}")
    records.sort(key=lambda record: (record.step, record.process))
    write_atomically(Path(output), _line(Record._fields) + _lines(records))
    return len(records)


def process_path(path: Path, process: int, processes: int) -> Path:
    """The file of one process: ``path`` itself where there is one only."""
    return path if processes == 1 else path.with_name(f"{path.stem}-process{process}{path.suffix}")


def _lines(records: Iterable[Record]) -> str:
    return "".join(_line([_cell(value) for value in record]) for record in records)


def _line(cells: Iterable[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _cell(value: object) -> object:
    """NaN is an empty cell, which readers of tables take for a missing value."""
    if isinstance(value, bool):
        return int(value)
    return "" if isinstance(value, float) and math.isnan(value) else value


def _value(name: str, cell: str) -> Any:
    kind = _TYPES[name]
    if kind is bool:
        return bool(int(cell))
    return math.nan if kind is float and cell == "" else kind(cell)
