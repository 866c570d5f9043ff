"""Exceptions that end a run."""

from __future__ import annotations


class NonFiniteError(RuntimeError):
    """The loss or its gradient became infinite or not a number; the state of the last good step is saved."""


class WriteError(OSError):
    """A file of the run could not be written; everything that was complete before is still there."""
