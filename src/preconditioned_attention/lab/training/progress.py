"""The progress line of a run: live in a terminal, otherwise ten plain lines."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch

from ..._extras import require

PLAIN_LINES = 10


class ProgressLine:
    """A context manager. On standard error, so that results on standard output stay clean.

    Args:
        label: the run's name.
        total: its steps.
        batch_size_at: examples of a step, by its index from 0.
        enabled: False for other processes than the main one, and for silence.
    """

    def __init__(self, label: str, *, total: int, batch_size_at: Callable[[int], int], enabled: bool) -> None:
        self._label = label
        self._total = total
        self._batch_size_at = batch_size_at
        self._enabled = enabled
        self._live: Any = None

    def __enter__(self) -> ProgressLine:
        if self._enabled:
            self._console = require("rich.console", extra="train").Console(stderr=True, highlight=False)
            if self._console.is_terminal:
                self._live = require("rich.live", extra="train").Live(console=self._console, refresh_per_second=8)
                self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def step(self, record: dict[str, Any]) -> None:
        """Show a step's record: step, loss, gradient_norm, learning_rate, seconds."""
        if self._live is not None:
            self._live.update(require("rich.text", extra="train").Text(self.format(record), overflow="fold"))
        elif self._enabled and (record["step"] % max(1, self._total // PLAIN_LINES) == 0):
            self.note(self.format(record))

    def note(self, text: str) -> None:
        """Show a line that stays."""
        if self._enabled:
            self._console.print(text, markup=False, soft_wrap=True)

    def format(self, record: dict[str, Any]) -> str:
        """A step's record as one line."""
        parts = [
            f"{self._label} {record['step']}/{self._total}",
            f"loss {record['loss']:.4f}",
            f"gradient norm {record['gradient_norm']:.3g}",
            f"lr {record['learning_rate']:.1e}",
            f"{self._batch_size_at(record['step'] - 1) / record['seconds']:.0f} samples/s",
        ]
        memory = peak_memory()
        return "  ".join(parts if memory is None else [*parts, f"{memory / 2**20:.0f} MiB"])


def peak_memory() -> int | None:
    """Peak memory in bytes: allocated on the GPU if there is one, otherwise of this process; or None."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
