"""Processes that share the work of a generator, and end with the process that started them."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any

from .limits import check_processes

Run = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
"""What ``map`` does."""


@contextmanager
def worker_pool(workers: int) -> Iterator[Run]:
    """``map`` over a pool of processes, results in order; ``map`` itself for one worker.

    Ctrl-C goes to every process of a terminal. The workers never see it: one that it ended while it holds a lock of the
    pool would leave the others waiting, and each would print a traceback. They are ended when the block is left.

    Args:
        workers: processes. With more than one the calling script needs the usual ``if __name__ == "__main__":``.

    Raises:
        TypeError, ValueError: ``workers`` is not a number of processes.
    """
    check_processes("workers", workers)
    if workers == 1:
        yield map
        return
    with _sigint_blocked():  # which new threads and processes inherit, those that replace a lost worker too
        pool = multiprocessing.get_context("spawn").Pool(workers)
    with pool:
        yield pool.imap


@contextmanager
def _sigint_blocked() -> Iterator[None]:
    if not hasattr(signal, "pthread_sigmask") or threading.current_thread() is not threading.main_thread():
        yield
        return
    resource_tracker.ensure_running()  # multiprocessing would start it with the first process, and unblock the signal
    former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)
