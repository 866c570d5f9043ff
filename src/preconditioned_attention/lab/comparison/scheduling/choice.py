"""``do_all``: the runs of a comparison, in the way that was asked for."""

from __future__ import annotations

from collections.abc import Sequence

from ..job import Job
from ..plan import RunKey
from .capacity import gpu_count
from .in_process import do_runs
from .processes import run_in_processes
from .progress import ProgressView


def do_all(job: Job, keys: Sequence[RunKey], *, workers: int, verbose: bool) -> None:
    """Do the runs of ``keys`` that are left, and show the progress.

    Args:
        job: the comparison, begun.
        keys: the runs.
        workers: the number of processes; 1: this one.
        verbose: show progress.
    """
    with ProgressView(job, keys, enabled=verbose) as view:
        if workers == 1:
            do_runs(job, keys)
            return
        view.note(f"{workers} worker processes, {'one GPU' if gpu_count() else 'one thread'} each")
        run_in_processes(job, keys, workers=workers, note=view.note)
