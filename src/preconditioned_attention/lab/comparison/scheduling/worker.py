"""What a worker process does: runs of a comparison, until none is left or its driver wants it to stop or has died."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import signal
import sys
import threading
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from ..job import Run
from ..metrics import RunMetrics
from ..preparation import Prepare
from .in_process import do_runs

GRACE_SECONDS = 25.0
"""A worker that was told to stop has so long to save a checkpoint. SLURM and torchrun give 30 seconds."""


@dataclass(frozen=True)
class Ready:
    """The worker has read its job."""


@dataclass(frozen=True)
class Started:
    """The worker begins a run; ``stem`` is the name of the run's folder."""

    stem: str


@dataclass(frozen=True)
class Ended:
    """No run is left to do, or the worker has stopped because of ``error``."""

    error: BaseException | None = None
    traceback: str = ""


class WorkerError(Exception):
    """The traceback of an error in a worker process, as its cause."""


def work(job: bytes, connection: Connection) -> None:
    """Do the runs of a pickled ``(Job, keys)``, and tell the driver through ``connection``.

    The other end of ``connection`` is the driver's. When it is closed, or the driver is dead, this process ends: a run
    in progress is stopped as by SIGTERM. Ctrl-C, which a terminal sends to every process, is left to the driver.
    """
    if hasattr(os, "setsid"):  # no signal of the driver's terminal or process group reaches this process
        os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _stop)
    if hasattr(signal, "pthread_sigmask"):  # the driver has blocked them
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    finished = threading.Event()
    threading.Thread(target=_stop_with_the_driver, args=(connection, finished), daemon=True).start()
    try:
        loaded, keys = pickle.loads(job)
        _send(connection, Ready())
        do_runs(dataclasses.replace(loaded, run=_Announced(loaded.run, connection)), keys)
        finished.set()
        _send(connection, Ended())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGTERM)
    except BaseException as error:
        _send(connection, Ended(_portable(error), traceback.format_exc()))
        sys.exit(1)


@dataclass(frozen=True)
class _Announced:
    """A ``run`` that tells the driver when it is called."""

    run: Run
    connection: Connection

    def __call__(self, prepare: Prepare, seed: int, learning_rate: float) -> RunMetrics | Any:
        if prepare.folder is not None:
            _send(self.connection, Started(prepare.folder.name))
        return self.run(prepare, seed, learning_rate)


def _stop(number: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # some send it twice; the second must not disturb the end
    raise KeyboardInterrupt


def _stop_with_the_driver(connection: Connection, finished: threading.Event) -> None:
    """Wait until the driver's end is closed, by the driver or because it died."""
    with contextlib.suppress(EOFError, OSError):
        connection.recv()
    if finished.is_set():
        return
    limit = threading.Timer(GRACE_SECONDS, os._exit, (128 + signal.SIGTERM,))
    limit.daemon = True  # so that the process does not wait for it
    limit.start()
    os.kill(os.getpid(), signal.SIGTERM)


def _send(connection: Connection, message: object) -> None:
    with contextlib.suppress(OSError):  # the driver is gone, and this process will be
        connection.send(message)


def _portable(error: BaseException) -> BaseException:
    """``error`` if another process can read it, otherwise its words."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
