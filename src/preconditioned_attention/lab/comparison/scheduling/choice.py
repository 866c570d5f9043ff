"""``do_all``: the runs of a comparison, in the way that was asked for."""

from __future__ import annotations

from collections.abc import Sequence

from ...._extras import require
from ...training.errors import Interrupted
from ...training.interruption import StopSignals
from ..job import Job
from ..plan import RunKey
from .capacity import choose_workers, gpu_count
from .in_process import do_runs
from .processes import run_in_processes
from .progress import ProgressView
from .ray_tasks import run_on_ray
from .together import is_launched, run_together


def choose_count(workers: int | None, ray_address: str | None) -> int:
    """The number of worker processes on this machine.

    Raises:
        TypeError, ValueError: ``workers`` is no such number, or excludes another way that is asked for.
        ImportError: Ray is needed and not installed.
    """
    others = {"ray_address": ray_address is not None, "torchrun": is_launched()}
    given = [name for name, used in others.items() if used]
    if not given:
        return choose_workers(workers)
    if len(given) == 2 or workers not in (None, 1):
        raise ValueError("workers, Ray and torchrun are ways to share the runs, and exclude each other; give one")
    if ray_address is not None:
        require("ray", extra="ray")
    return 1


def do_all(job: Job, keys: Sequence[RunKey], *, workers: int, ray_address: str | None, verbose: bool) -> None:
    """Do the runs of ``keys`` that are left, and show the progress.

    Args:
        job: the comparison, begun.
        keys: the runs.
        workers: the number of processes; 1: this one.
        ray_address: of the Ray cluster that does them instead, or None.
        verbose: show progress.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; every process that this one has started has ended. Other errors are those of
            :func:`do_runs`, :func:`run_in_processes`, :func:`run_on_ray` and :func:`run_together`.
    """
    try:
        with StopSignals(), ProgressView(job, keys, enabled=verbose) as view:
            if is_launched():
                run_together(job, keys)
            elif ray_address is not None:
                run_on_ray(job, keys, address=ray_address, note=view.note)
            elif workers > 1:
                view.note(f"{workers} worker processes, {'one GPU' if gpu_count() else 'one thread'} each")
                run_in_processes(job, keys, workers=workers, note=view.note)
            else:
                do_runs(job, keys)
    except Interrupted as error:
        ended = sum(job.record(key) is not None for key in keys)
        raise Interrupted(
            f"stopped with {ended} of {len(keys)} runs done; those that had begun go on from their last checkpoint",
            error.number,
        ) from error
