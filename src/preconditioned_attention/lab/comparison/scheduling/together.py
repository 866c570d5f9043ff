"""``run_together``: the processes of torchrun do every run of a comparison together.

The main process goes through the plan, claims runs and writes their records; it tells the others which run to do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from ...._extras import require
from ...training.interruption import StopSignals
from ...training.launch import check_connection
from ...training.processes import raise_on_all_ranks
from ...training.randomness import seed_all
from ...training.restarts import leave_former_store
from ..job import Job, Run
from ..metrics import RunMetrics
from ..plan import RunKey
from ..preparation import Prepare
from .in_process import POLL_SECONDS, do_runs

Result = TypeVar("Result")


def is_launched() -> bool:
    """Whether this process is one of several that a launcher has started.

    Raises:
        RuntimeError, ValueError: variables of a launcher are missing or invalid.
    """
    check_connection()
    return int(os.environ.get("WORLD_SIZE") or 1) > 1


def together(lead: Callable[[], Result], job: Job) -> Result:
    """What ``lead`` returns on the main process, which alone calls it, on every process.

    Args:
        lead: calls :func:`run_together` once.
        job: for the other processes.

    Raises:
        RuntimeError: on the others, if ``lead`` raised. On the main process the errors of ``lead``.
    """
    result: Result | None = None
    if _state().is_main_process:
        try:
            result = lead()
        except Exception:
            broadcast(None)
            raise
        broadcast(result)
        return result
    with StopSignals():
        while isinstance(order := broadcast(), _Order):
            order.follow(job)
    if order is None:
        raise RuntimeError("the main process has stopped the comparison; its message says why")
    return order


def _state() -> Any:
    """Accelerate's, which every run of this process shares."""
    leave_former_store()
    return require("accelerate", extra="train").PartialState(cpu=not torch.accelerator.is_available())


def broadcast(value: Any = None) -> Any:
    """What the main process passes; the others wait for it."""
    return require("accelerate.utils", extra="train").broadcast_object_list([value])[0]


def run_together(job: Job, keys: Sequence[RunKey]) -> None:
    """On the main process: do the runs of ``keys`` with the others. Errors are those of :func:`do_run`."""
    do_runs(dataclasses.replace(job, run=_Told(job.run)), keys, pause=_pause)


@dataclass(frozen=True)
class _Order:
    """What the main process tells the others: a run, or None to wait for the next order."""

    key: RunKey | None

    def follow(self, job: Job) -> None:
        """Do the run with the main process."""
        if self.key is None:
            return
        arm, options = job.plan.arms[self.key.arm], job.plan.variants.get(self.key.arm, {})
        seed_all(self.key.seed)
        with contextlib.suppress(Exception):  # the main process raises, too, and records it
            _run_on_all(
                job.run, Prepare(arm, options, job.store.folder(self.key)), self.key.seed, self.key.learning_rate
            )


@dataclass(frozen=True)
class _Told:
    """A ``run`` of the main process that all processes do."""

    run: Run

    def __call__(self, prepare: Prepare, seed: int, learning_rate: float) -> RunMetrics | Mapping[str, Any]:
        assert prepare.folder is not None
        # The folder is named after the run; `do_run` made it.
        arm = prepare.folder.name.removesuffix(RunKey(seed, learning_rate, "").stem)
        broadcast(_Order(RunKey(seed, learning_rate, arm)))
        return _run_on_all(self.run, prepare, seed, learning_rate)


def _run_on_all(run: Run, prepare: Prepare, seed: int, learning_rate: float) -> RunMetrics | Mapping[str, Any]:
    """What ``run`` returns; raises on every process if it raises on one."""
    with raise_on_all_ranks(_state()):
        return run(prepare, seed, learning_rate)


def _pause() -> None:
    broadcast(_Order(None))  # so that the others do not wait for longer than a message may take
    time.sleep(POLL_SECONDS)
