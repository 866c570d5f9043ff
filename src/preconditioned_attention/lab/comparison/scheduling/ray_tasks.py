"""``run_on_ray``: every run of a comparison is a task of a Ray cluster."""

from __future__ import annotations

import os
import platform
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

from ...training.errors import Interrupted
from ..folder import PLAN
from ..job import Job, do_run
from ..plan import RunKey
from .giving_up import record_failure
from .ray_cluster import check_nodes, connected
from .worker import GRACE_SECONDS

BUSY_SECONDS = 10.0
"""A run that another process does is asked for again after so long."""


def run_on_ray(job: Job, keys: Sequence[RunKey], *, address: str, note: Callable[[str], None]) -> None:
    """Do the runs of ``keys`` as tasks of the Ray cluster at ``address``, with one GPU each, or one CPU if it has none.

    Ray decides where and when a run is done, and does it again if its process or its node dies, by default three times
    (``RAY_TASK_MAX_RETRIES``); it goes on from its checkpoint. On an error, and on Ctrl-C or SIGTERM, all tasks are
    cancelled before it is raised.

    Args:
        job: its folder must be one that every node sees.
        keys: the runs.
        address: ``"auto"``, ``"HOST:PORT"`` or ``"ray://HOST:PORT"``.
        note: shows a line.

    Raises:
        ImportError: Ray is not installed. ValueError: it is no such address. ConnectionError: no cluster answers there.
        OSError: a node does not see the folder. RuntimeError: a node has other versions.
        TypeError: ``run`` cannot be pickled.
        KeyboardInterrupt: Ctrl-C or SIGTERM. Errors of :func:`do_run`.
    """
    with connected(address) as ray:
        check_nodes(ray, job.store.output)
        tasks = _Tasks(ray, job, note)
        try:
            tasks.run([key for key in keys if job.record(key) is None])
        except BaseException:
            tasks.cancel()
            raise


def do_task(job: Job, key: RunKey) -> bool:
    """Do a run in a task; False if another process is doing it."""
    if not (job.store.output / PLAN).exists():
        raise FileNotFoundError(f"node {platform.node()} does not see {job.store.output}, the comparison's folder")
    try:
        return do_run(job, key) is not None
    except Interrupted as error:
        if error.number == signal.SIGTERM:  # this node is going away: Ray takes the end of the process for that
            os._exit(error.exit_code)
        raise


class _Tasks:
    """The runs that the cluster has been given."""

    def __init__(self, ray: Any, job: Job, note: Callable[[str], None]) -> None:
        self._ray = ray
        self._job = job
        self._note = note
        self._pending: dict[Any, RunKey] = {}
        self._busy: list[tuple[float, RunKey]] = []
        resources = ray.cluster_resources()
        needed = {"num_cpus": 1, "num_gpus": 1} if resources.get("GPU", 0) >= 1 else {"num_cpus": 1}
        note(
            f"Ray: {resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs; a run takes {_words(needed)}"
        )
        self._task = ray.remote(**needed)(do_task)

    def run(self, keys: Sequence[RunKey]) -> None:
        try:
            shared = self._ray.put(self._job)
        except Exception as error:
            raise TypeError(f"run cannot be sent to other processes ({error}); define it so that it can") from error
        self._busy = [(0.0, key) for key in keys]
        while self._pending or self._busy:
            now = time.monotonic()
            due = [key for at, key in self._busy if at <= now]
            self._busy = [(at, key) for at, key in self._busy if at > now]
            self._pending |= {self._task.remote(shared, key): key for key in due}
            if not self._pending:
                time.sleep(1.0)
                continue
            for task in self._ray.wait(list(self._pending), timeout=1.0)[0]:
                self._collect(task, self._pending.pop(task))

    def cancel(self) -> None:
        """Cancel all tasks: those that run save a checkpoint, and are killed if it takes too long."""
        waiting = list(reversed(self._pending))  # the last first, so that none begins because another has ended
        for task in waiting:
            self._ray.cancel(task)
        if waiting:
            self._ray.wait(waiting, num_returns=len(waiting), timeout=GRACE_SECONDS)
        for task in waiting:
            self._ray.cancel(task, force=True)

    def _collect(self, task: Any, key: RunKey) -> None:
        exceptions = self._ray.exceptions
        try:
            done = self._ray.get(task)
        except exceptions.RayTaskError as error:
            raise error.cause from error
        except exceptions.RayError as error:
            reason = f"Ray gave it up: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            self._note(f"run {key.stem} failed: {reason}")
            done = record_failure(self._job, key, reason)
        if not done:
            self._busy.append((time.monotonic() + BUSY_SECONDS, key))


def _words(resources: dict[str, int]) -> str:
    return " and ".join(f"{count} {name.removeprefix('num_')[:-1].upper()}" for name, count in resources.items())
