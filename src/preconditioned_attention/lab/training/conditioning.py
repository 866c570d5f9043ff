"""The condition numbers of a run's attention during training, and their file."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import nn

from ...diagnostics import ConditionMonitor, Record, read_records
from ...diagnostics.monitor_file import RecordFile
from ...diagnostics.monitor_records import summarize
from .config import TrainConfig
from .errors import WriteError
from .processes import raise_on_all_ranks
from .state import TrainState
from .tracking import track

TRACKED = ("kappa_before", "kappa_after", "spread_before", "entropy")


class ConditioningLog:
    """A context manager that records condition numbers if ``config.monitor`` is set, and does nothing otherwise.

    Records of all processes are gathered on each of them; the main one writes them to ``path``.

    Args:
        state: the run.
        path: the file.

    Raises:
        ValueError: the model has no attention that can be monitored, or is compiled.
    """

    def __init__(self, state: TrainState, path: Path) -> None:
        self.history: list[dict[str, Any]] = []
        self._kept: list[Record] = []
        self._state = state
        self._path = path
        self._file: RecordFile | None = None
        self._monitor: ConditionMonitor | None = None
        if state.config.monitor is not None:
            self._monitor = ConditionMonitor(state.unwrapped, **dataclasses.asdict(state.config.monitor)).attach()
            self._monitor.step = state.step + 1

    def read(self) -> None:
        """Read the records up to the step that the run resumes after; nothing is written.

        Raises:
            ValueError: the existing file is not that of this run.
            OSError: it cannot be read.
        """
        state = self._state
        with raise_on_all_ranks(state.accelerator):
            kept = read_conditioning(self._path, state.config, state.unwrapped, last_step=state.step)
        self._kept = kept
        self._remember(kept)

    def begin(self) -> None:
        """Start the file with the records that were read.

        Raises:
            OSError: it cannot be written.
        """
        with raise_on_all_ranks(self._state.accelerator):
            if self._monitor is not None and self._state.accelerator.is_main_process:
                self._file = RecordFile(self._path, self._kept)

    def __enter__(self) -> ConditioningLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Detach the monitor and close the file. Closing twice is no error."""
        if self._monitor is not None:
            self._monitor.close()
        if self._file is not None:
            self._file.close()
            self._file = None

    def synchronize(self) -> None:
        """Flush the records to the disk (``fsync``).

        Raises:
            WriteError: the disk does not take them.
        """
        if self._file is not None:
            try:
                self._file.synchronize()
            except OSError as error:
                raise WriteError(str(error)) from error

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Around one optimizer step; its first micro-step is recorded, if the step is due.

        Raises:
            WriteError: the file cannot be written.
        """
        if self._monitor is None:
            yield
            return
        self._monitor.step = self._state.step + 1
        yield
        if self._monitor.is_due():
            self._write(self._gathered(self._monitor.take()))

    def _gathered(self, records: list[Record]) -> list[Record]:
        from accelerate.utils import gather_object

        accelerator = self._state.accelerator
        return gather_object([r._replace(process=accelerator.process_index) for r in records])

    def _write(self, records: list[Record]) -> None:
        rows = self._remember(records)
        with raise_on_all_ranks(self._state.accelerator):
            if self._file is not None:
                try:
                    self._file.add(records)
                except OSError as error:
                    raise WriteError(str(error)) from error
        values = {f"conditioning/{row['layer']}/{name}": row[name] for row in rows for name in TRACKED}
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        track(self._state.accelerator, finite, self._state.step)

    def _remember(self, records: Sequence[Record]) -> list[dict[str, Any]]:
        rows = summarize_records(records)
        self.history += rows
        return rows


def read_conditioning(path: Path, config: TrainConfig, model: nn.Module, *, last_step: int) -> list[Record]:
    """The records of a run up to and including ``last_step``; none if the run has no monitor.

    Raises:
        ValueError: the file is not one of the monitor's, or not that of a run of ``config`` up to this step.
        OSError: it cannot be read.
    """
    if config.monitor is None or not last_step:
        return []
    try:
        records = [record for record in read_records(path) if record.step <= last_step]
    except FileNotFoundError as error:
        raise ValueError(f"{path} must hold the records up to step {last_step}, and is missing") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    due = range(1, last_step + 1, config.monitor.for_run().every or 1)
    wrong = {record.step for record in records} ^ set(due)
    if wrong:
        raise ValueError(f"{path} must hold records of each recorded step up to {last_step}; step {min(wrong)} differs")
    unknown = {record.layer for record in records} - {name for name, _ in model.named_modules()}
    if unknown:
        raise ValueError(f"{path} holds records of {min(unknown)!r}, which is no layer of the run's model")
    matrices = [record[: Record._fields.index("rows")] for record in records]
    if len(set(matrices)) < len(matrices):
        raise ValueError(f"{path} holds a matrix twice; it is not as the run has written it")
    return records


def summarize_records(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Per recorded step and layer, the medians that ``ConditionMonitor.summary()`` gives."""
    rows = []
    for step, of_step in groupby(sorted(records, key=lambda r: r.step), key=lambda r: r.step):
        by_layer: dict[str, list[Record]] = {}
        for record in of_step:
            by_layer.setdefault(record.layer, []).append(record)
        rows += [{"step": step, **summarize(layer, own)} for layer, own in by_layer.items()]
    return rows
