"""Standard output and standard error of a command: closed, full, or in an encoding that lacks characters."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO


@contextmanager
def usable_streams() -> Iterator[None]:
    """Inside, everything can be printed: what the encoding lacks as escapes, to a closed stream without effect."""
    _open_closed_descriptors()
    former = []
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            former.append((stream, stream.errors))
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream, errors in former:
            if not stream.closed:
                stream.reconfigure(errors=errors)


def output_failure() -> OSError | None:
    """Write what is left of standard output; the error if that fails, and what is printed from then on is dropped."""
    try:
        sys.stdout.flush()
    except OSError as error:
        _drop(sys.stdout)
        return error
    return None


def say(text: str) -> None:
    """Print a line on standard error, if it is there."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        _drop(sys.stderr)


def _open_closed_descriptors() -> None:
    """Give closed streams a place, so that no file that is opened later takes their number and what is printed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    sys.stdout = sys.stdout or _nowhere()
    sys.stderr = sys.stderr or _nowhere()


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")


def _drop(stream: TextIO) -> None:
    """Let the stream write to nowhere: the rest that it holds would fail again when Python ends."""
    with suppress(OSError, ValueError):  # a stream of a test has no descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
