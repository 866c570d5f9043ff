"""Ctrl-C, also while a library is being imported."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ._streams import say

INTERRUPTED = 130
SHOW_CURSOR = "\x1b[?25h"  # a progress bar hides it
MESSAGE = "precond: interrupted; what was complete is on the disk"


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside, Ctrl-C raises ``KeyboardInterrupt``, but ends the process at once while something is imported.

    Modules in C that import others drop whatever exception that raises: PyTorch does when it looks for NumPy. So the
    interrupt would be lost, and the command would go on, with half of NumPy. Nothing is being written at that time that
    is not written atomically.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.getsignal(signal.SIGINT)
    if former is not signal.default_int_handler:  # ignored, as in the background, or somebody else's
        yield
        return
    signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is _interrupt:
            signal.signal(signal.SIGINT, former)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if not _is_import(frame):
        raise KeyboardInterrupt
    processes = sys.modules.get("multiprocessing.process")
    for child in processes.active_children() if processes else ():
        child.terminate()
    say((SHOW_CURSOR if sys.stderr.isatty() else "") + MESSAGE)
    os._exit(INTERRUPTED)


def _is_import(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
