"""``metrics.jsonl``: one record per optimizer step and per evaluation."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, TextIO

from ..._files import write_atomically
from .errors import WriteError

Record = dict[str, Any]


def read_metrics(path: Path, *, last_step: int) -> list[Record]:
    """The records up to and including ``last_step``.

    Raises:
        ValueError: a step up to ``last_step`` is missing or a line is not a record.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    records: list[Record] = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):  # a killed run may leave its last line unfinished; it belongs to a later step
                break
            raise ValueError(f"line {number} of {path} is not a record: {error}") from error
        if record["step"] <= last_step:
            records.append(record)
    steps = [record["step"] for record in records if record["kind"] == "step"]
    if steps != list(range(1, last_step + 1)):
        raise ValueError(f"{path} must hold every step up to the checkpoint's, {last_step}; it holds {len(steps)}")
    return records


class MetricsLog:
    """The records of a run, in memory on every process and in a file on the main one.

    Args:
        path: the file; it is rewritten with ``records`` first.
        records: those of an interrupted run.
        write: whether this process writes the file.
    """

    def __init__(self, path: Path, records: list[Record], *, write: bool) -> None:
        self.path = path
        self.records = list(records)
        self._file: TextIO | None = None
        if write:
            write_atomically(path, "".join(map(_line, records)))
            self._file = path.open("a", encoding="utf-8")

    def of_kind(self, kind: str) -> list[Record]:
        """The records of one kind, ``"step"`` or ``"evaluation"``, without the kind."""
        return [
            {key: value for key, value in record.items() if key != "kind"}
            for record in self.records
            if record["kind"] == kind
        ]

    def add(self, kind: str, values: Record) -> None:
        """Add a record and flush it to the file.

        Raises:
            WriteError: the file cannot be written.
        """
        record = {"kind": kind, **values}
        self.records.append(record)
        if self._file is None:
            return
        try:
            self._file.write(_line(record))
            self._file.flush()
        except OSError as error:
            raise WriteError(f"{self.path} could not be written at step {values['step']}: {error}") from error

    def synchronize(self) -> None:
        """Flush the records to the disk (``fsync``)."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def _line(record: Record) -> str:
    return json.dumps(record) + "\n"
