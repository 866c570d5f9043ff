"""``run_in_processes``: several worker processes on this machine share the runs of a comparison."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from multiprocessing.context import SpawnProcess
from typing import Any

from ..job import Job
from ..plan import RunKey
from .capacity import core_count, gpu_count, gpu_name
from .giving_up import record_failure
from .worker import GRACE_SECONDS, Ended, Ready, Started, WorkerError, work

NAME = "comparison-worker"
MOST_DEATHS = 3
"""A run whose process has died so often counts as failed."""


def run_in_processes(job: Job, keys: Sequence[RunKey], *, workers: int, note: Callable[[str], None]) -> None:
    """Do the runs of ``keys`` in worker processes; without a GPU each computes with one thread, otherwise on one GPU.

    A worker that dies is replaced, and its run is taken over. On an error, and on SIGTERM or Ctrl-C, all workers are
    stopped before it is raised.

    Args:
        job: its ``run`` must be one that another process can import.
        keys: the runs.
        workers: the number of processes; no more are started than runs are left.
        note: shows a line.

    Raises:
        TypeError: ``run`` cannot be pickled.
        RuntimeError: a worker ended before its first run.
        KeyboardInterrupt: Ctrl-C or SIGTERM. Errors of :func:`do_run`.
    """
    left = [key for key in keys if job.record(key) is None]
    pool = _Pool(job, left, _pickled(job, left), note)
    with pool:
        for _ in range(min(workers, len(left))):
            pool.start()
        while pool.is_busy():
            pool.wait()


def is_worker() -> bool:
    """Whether this process is one of the workers, also while it is still importing the driver's script."""
    return multiprocessing.current_process().name.startswith(NAME)


def _pickled(job: Job, keys: Sequence[RunKey]) -> bytes:
    try:
        return pickle.dumps((job, list(keys)))
    except Exception as error:
        raise TypeError(
            f"run cannot be sent to other processes ({error}); define it at the top level of a module, "
            "with everything that it needs imported there, or give workers=1"
        ) from error


@dataclass
class _Worker:
    """A worker process, the driver's end of its connection, and what is known of it."""

    number: int
    process: SpawnProcess
    connection: connection.Connection
    ready: bool = False
    stem: str | None = None
    ended: Ended | None = None


class _Pool:
    """The living workers. On exit they are told to stop, and killed if they take too long."""

    def __init__(self, job: Job, keys: Sequence[RunKey], payload: bytes, note: Callable[[str], None]) -> None:
        self.job = job
        self.keys = {key.stem: key for key in keys}
        self.workers: list[_Worker] = []
        self._payload = payload
        self._note = note
        self._deaths: Counter[str | None] = Counter()

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self.workers:
            with contextlib.suppress(Exception):  # an error is on its way already
                self._read(worker)
            worker.connection.close()
            if not worker.ready:  # it is importing, and has nothing to save
                worker.process.kill()
        deadline = time.monotonic() + GRACE_SECONDS + 5.0  # after its own deadline a worker ends itself
        try:
            for worker in self.workers:
                worker.process.join(max(0.0, deadline - time.monotonic()))
        finally:
            for worker in self.workers:
                worker.process.kill()
                worker.process.join()

    def is_busy(self) -> bool:
        """Whether a worker has runs left to do."""
        return any(worker.ended is None for worker in self.workers)

    def start(self) -> None:
        """Start a worker under the first free number, which decides its GPU."""
        number = min(set(range(len(self.workers) + 1)) - {worker.number for worker in self.workers})
        context = multiprocessing.get_context("spawn")
        ours, its = context.Pipe()
        process = context.Process(target=work, args=(self._payload, its), name=f"{NAME}-{number}")
        with _environment(number), _signals_blocked():
            process.start()
        its.close()
        self.workers.append(_Worker(number, process, ours))

    def wait(self) -> None:
        """Wait until something happens, and deal with it."""
        connection.wait([worker.connection for worker in self.workers], timeout=1.0)
        for worker in list(self.workers):
            self._read(worker)
            # Not the sentinel: processes that a run started inherit it and keep it open.
            if worker.process.exitcode is not None:
                self._read(worker)
                self.workers.remove(worker)
                worker.connection.close()
                self._bury(worker)

    def _read(self, worker: _Worker) -> None:
        with contextlib.suppress(EOFError, OSError):
            while worker.connection.poll():
                self._note_message(worker, worker.connection.recv())

    def _note_message(self, worker: _Worker, message: Any) -> None:
        if isinstance(message, Started):
            worker.stem = message.stem
        elif isinstance(message, Ready):
            worker.ready = True
        elif isinstance(message, Ended):
            worker.ended = message
            if message.error is not None:
                raise message.error from WorkerError(f"in a worker process:\n{message.traceback}")

    def _bury(self, worker: _Worker) -> None:
        """Replace a worker that was killed or crashed."""
        if worker.ended is not None:
            return
        cause = describe_end(worker.process.exitcode)
        if not worker.ready:
            raise RuntimeError(
                f"a worker process {cause} before its first run; its own message is above. A script that calls "
                'compare with workers does so under `if __name__ == "__main__":`, because workers import it'
            )
        self._deaths[worker.stem] += 1
        what = f"while it did run {worker.stem}" if worker.stem in self.keys else "between runs"
        self._note(f"A worker process {cause} {what}; it is replaced, and what it left is taken over")
        if self._deaths[worker.stem] >= MOST_DEATHS:
            self._give_up(worker.stem, cause)
        if any(self.job.record(key) is None for key in self.keys.values()):
            self.start()

    def _give_up(self, stem: str | None, cause: str) -> None:
        """Record that a run has failed, because its process died too often."""
        if stem not in self.keys:
            raise RuntimeError(f"a worker process {cause} between runs, {MOST_DEATHS} times")
        record_failure(self.job, self.keys[stem], f"its process {cause}, {MOST_DEATHS} times")


def describe_end(code: int | None) -> str:
    """How a process with this exit code ended, in words."""
    if code is None or code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


@contextlib.contextmanager
def _environment(number: int) -> Iterator[None]:
    """The variables of a worker, which must be set before it imports torch: its threads or its GPU."""
    gpus = gpu_count()
    threads = max(1, core_count() // gpus) if gpus else 1
    values = {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR")}
    if gpus:
        values["CUDA_VISIBLE_DEVICES"] = gpu_name(number)
    former = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in former.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Deliver Ctrl-C and SIGTERM afterwards; a process that is started meanwhile begins with them blocked."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    signals = {signal.SIGINT, signal.SIGTERM}
    resource_tracker.ensure_running()  # multiprocessing would start it with the first process, and unblock them
    former = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)
