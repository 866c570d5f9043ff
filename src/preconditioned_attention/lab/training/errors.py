"""Exceptions that end a run."""

from __future__ import annotations

import signal


class NonFiniteError(RuntimeError):
    """The loss or its gradient became infinite or not a number; the state of the last good step is saved."""


class WriteError(OSError):
    """A file of the run could not be written; everything that was complete before is still there."""


class Interrupted(KeyboardInterrupt):
    """A signal, Ctrl-C or SIGTERM, stopped the run; the message says where its state is saved.

    Args:
        message: for the user.
        number: of the signal.
    """

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        super().__init__(message, number)
        self.message = message
        self.number = number

    def __str__(self) -> str:
        return self.message

    @property
    def exit_code(self) -> int:
        """What shells and schedulers expect of a process that was stopped by the signal: 130 or 143."""
        return 128 + self.number
