"""``ProgressView``: one view of a comparison's runs, whoever does them, read from the comparison's folder."""

from __future__ import annotations

import copy
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from ...._extras import require
from ...._yaml import parse_yaml
from ...training.claim import CLAIM, RunClaim
from ...training.folder import RunFolder
from ..job import Job
from ..plan import RunKey

POLL_SECONDS = 2.0
SECONDS_PER_RUN = 0.05
"""Two looks at the folder are at least so long apart for every run that is left, which bounds the load on its disk."""
TAIL_BYTES = 4096
MOST_LINES = 16
"""Of active runs on a terminal; more are counted."""


@dataclass(frozen=True)
class ActiveRun:
    """A run that a process has claimed. ``steps`` is None if the run writes no metrics of steps."""

    stem: str
    owner: str
    step: int = 0
    steps: int | None = None

    @property
    def fraction(self) -> float:
        """The part of the run that is done."""
        return self.step / self.steps if self.steps else 0.0

    def format(self) -> str:
        """The run in one line."""
        steps = f"step {self.step}/{self.steps}" if self.steps else "running"
        return f"  {self.stem}  {steps}  process {self.owner}"


class ProgressView:
    """A context manager that shows finished and active runs on standard error: live in a terminal, otherwise in lines.

    Args:
        job: the comparison.
        keys: the runs that are waited for.
        enabled: False for silence.
    """

    def __init__(self, job: Job, keys: Sequence[RunKey], *, enabled: bool) -> None:
        # A copy of its own, because a store that is read in two threads may be read half changed.
        self._job = Job(run=job.run, store=copy.copy(job.store), former_failures=job.former_failures)
        self._keys = list(keys)
        self._enabled = enabled
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._steps: dict[str, int] = {}
        self._failed: dict[RunKey, str | None] = {}
        self._at_start: float | None = None
        self._live: Any = None
        self.left = list(keys)
        """The runs that had not ended at the last look."""

    def __enter__(self) -> ProgressView:
        self._begun = time.monotonic()
        if self._enabled:
            self._console = require("rich.console", extra="train").Console(stderr=True, highlight=False)
            if self._console.is_terminal:
                live = require("rich.live", extra="train").Live
                self._live = live(console=self._console, auto_refresh=False, transient=True, redirect_stdout=False)
                self._live.start()
            self._look()
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        if self._enabled:
            self._thread.join()
            if self._live is not None:
                self._live.stop()

    def note(self, text: str) -> None:
        """Show a line that stays."""
        if self._enabled:
            self._console.print(text, markup=False, soft_wrap=True)

    def _watch(self) -> None:
        while not self._stopping.wait(max(POLL_SECONDS, SECONDS_PER_RUN * len(self.left))):
            self._look()
        self._look()

    def _look(self) -> None:
        ended = [key for key in self.left if self._read(key)]
        self.left = [key for key in self.left if key not in ended]
        active = [run for key in self.left if (run := self._active(key)) is not None]
        done = len(self._keys) - len(self.left) + sum(run.fraction for run in active)
        if self._at_start is None:
            self._at_start, ended = done, []
        summary = self._summarize(done)
        if self._live is not None:
            lines = [summary, *(run.format() for run in active[:MOST_LINES])]
            lines += [f"  and {len(active) - MOST_LINES} more"] if len(active) > MOST_LINES else []
            self._live.update(require("rich.text", extra="train").Text("\n".join(lines)), refresh=True)
        elif ended:
            self.note(f"{', '.join(key.stem for key in ended)} ended. {summary}")

    def _read(self, key: RunKey) -> bool:
        """Whether the run has ended; a failed one is told."""
        try:
            record = self._job.record(key)
        except (OSError, ValueError):  # the scheduler reads it, too, and raises
            return False
        if record is not None and not record.finished:
            self._failed[key] = record.reason
        return record is not None

    def _active(self, key: RunKey) -> ActiveRun | None:
        folder = RunFolder(self._job.store.folder(key))
        if not (folder.path / CLAIM).exists():
            return None
        steps = self._steps.get(key.stem) or _configured_steps(folder.config)
        if steps is not None:
            self._steps[key.stem] = steps
        return ActiveRun(key.stem, RunClaim(folder.path).owner(), last_step(folder.metrics) if steps else 0, steps)

    def _summarize(self, done: float) -> str:
        total, ended = len(self._keys), len(self._keys) - len(self.left)
        words = [f"{ended} of {total} runs have ended"]
        words += [f"{len(self._failed)} failed"] if self._failed else []
        elapsed, progress = time.monotonic() - self._begun, done - (self._at_start or 0.0)
        words.append(f"{format_seconds(elapsed)} elapsed")
        if self.left and progress > 0:
            words.append(f"about {format_seconds(elapsed * (total - done) / progress)} left")
        return ", ".join(words)


def last_step(metrics: Path) -> int:
    """The step of the last complete line of a run's ``metrics.jsonl``; 0 without one."""
    try:
        with metrics.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            lines = file.read().split(b"\n")[:-1]  # what follows the last newline is not complete
        return int(json.loads(lines[-1])["step"])
    except (OSError, ValueError, LookupError, TypeError):
        return 0


def _configured_steps(config: Path) -> int | None:
    try:
        steps = parse_yaml(config.read_text(encoding="utf-8"), source=str(config)).get("steps")
    except (OSError, ValueError, TypeError):
        return None
    return steps if isinstance(steps, int) and steps > 0 else None


def format_seconds(seconds: float) -> str:
    """A duration such as ``"2 h 05 min"``, ``"3 min 20 s"`` or ``"7 s"``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
