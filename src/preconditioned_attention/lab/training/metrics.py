"""``metrics.jsonl``: one record per optimizer step and per evaluation, in strict JSON."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any, TextIO

from ..._files import write_atomically
from .errors import WriteError

Record = dict[str, Any]

KINDS = ("step", "evaluation")


def read_metrics(path: Path, *, last_step: int, evaluated: Collection[int] = ()) -> list[Record]:
    """The records up to and including ``last_step``.

    Args:
        path: the file.
        last_step: the step of the checkpoint that the run goes on from.
        evaluated: the steps after which there must be an evaluation. That after ``last_step`` may be missing.

    Raises:
        ValueError: a record is missing, there twice, or not one of those that :class:`MetricsLog` writes.
        OSError: the file cannot be read.
    """
    lines = _read_lines(path) if path.exists() else []
    records: list[Record] = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(_parse(line))
        except json.JSONDecodeError as error:
            if number == len(lines):  # a killed run may leave its last line unfinished; it belongs to a later step
                break
            raise ValueError(f"line {number} of {path} is not a record: {error}") from error
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {number} of {path} is not a record: {error}") from error
    records = [record for record in records if record["step"] <= last_step]
    _check_complete(path, records, last_step=last_step, evaluated=evaluated)
    return records


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def _parse(line: str) -> Record:
    record = json.loads(line)
    if not isinstance(record, dict) or record.get("kind") not in KINDS:
        raise ValueError(f"an object with the kind 'step' or 'evaluation' was expected; got {line[:80]}")
    if type(record.get("step")) is not int or record["step"] < 1:
        raise ValueError(f"'step' must be a whole number from 1; got {record.get('step')!r}")
    if record["kind"] == "step":
        record["gradient_norm"] = _finite_or_none(record.get("gradient_norm"))
    required = ("loss", "seconds") if record["kind"] == "step" else ()
    for name in {**dict.fromkeys(required), **record}:
        if name not in ("kind", "step", "gradient_norm"):
            check_finite(name, record.get(name))
    return record


def check_finite(name: str, value: object) -> None:
    """Raise ``ValueError`` unless ``value``, which a file holds under ``name``, is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -math.inf < value < math.inf:
        raise ValueError(f"{name!r} must be a finite number; got {value!r}")


def _finite_or_none(value: object) -> object:
    """None for a gradient norm that is not finite, which a gradient scaler may allow."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is not None:
        check_finite("gradient_norm", value)
    return value


def _check_complete(path: Path, records: list[Record], *, last_step: int, evaluated: Collection[int]) -> None:
    steps = [record["step"] for record in records if record["kind"] == "step"]
    if steps != list(range(1, last_step + 1)):
        raise ValueError(
            f"{path} must hold every step up to the checkpoint's, {last_step}; it holds {len(steps)}, not each "
            "once and in order"
        )
    found = [record["step"] for record in records if record["kind"] == "evaluation"]
    expected = [step for step in evaluated if step < last_step or (step == last_step and step in found)]
    if evaluated and found != expected:
        pairs = itertools.zip_longest(expected, found)
        step, other = next(pair for pair in pairs if pair[0] != pair[1])
        raise ValueError(
            f"{path} must hold one evaluation after each step that the configuration names, in order: where that of "
            f"step {step} was expected is that of step {other}"
        )


class MetricsLog:
    """The records of a run, in memory on every process and in a file on the main one.

    Args:
        path: the file; it is rewritten with ``records`` first.
        records: those of an interrupted run.
        write: whether this process writes the file.

    Raises:
        OSError: the file cannot be written.
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

    def has_evaluation(self, step: int) -> bool:
        """Whether there is an evaluation after ``step``."""
        return any(record["kind"] == "evaluation" and record["step"] == step for record in self.records)

    def add(self, kind: str, values: Record) -> None:
        """Add a record and flush it to the file. A gradient norm that is not finite becomes None.

        Raises:
            WriteError: the file cannot be written.
            ValueError: another value is not finite.
        """
        record = {"kind": kind, **values}
        if "gradient_norm" in record:
            record["gradient_norm"] = _finite_or_none(record["gradient_norm"])
        line = _line(record)
        self.records.append(record)
        if self._file is None:
            return
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise WriteError(f"{self.path} could not be written at step {values['step']}: {error}") from error

    def synchronize(self) -> None:
        """Flush the records to the disk (``fsync``).

        Raises:
            WriteError: the disk does not take them.
        """
        if self._file is None:
            return
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise WriteError(f"{self.path} could not be written to the disk: {error}") from error

    def close(self) -> None:
        """Close the file. What a full disk did not take was an error of :meth:`add`, and is none again here."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()


def _line(record: Record) -> str:
    return json.dumps(record, allow_nan=False) + "\n"
