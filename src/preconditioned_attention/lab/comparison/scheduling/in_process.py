"""``do_runs``: go through the runs of a comparison in this process, beside any others that do."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from ..job import Job, do_run
from ..plan import RunKey

POLL_SECONDS = 1.0
"""Between two looks at the runs that other processes do."""


def _pause() -> None:
    time.sleep(POLL_SECONDS)


def do_runs(job: Job, keys: Sequence[RunKey], *, pause: Callable[[], None] = _pause) -> None:
    """Do the runs of ``keys``, in order, until none is left that is neither finished nor failed.

    Runs that other living processes do are passed over and looked at again, so that a run whose process dies is taken
    over. ``pause`` is called between two looks. Errors are those of :func:`do_run`.
    """
    left = list(keys)
    while left := [key for key in left if do_run(job, key) is None]:
        pause()
