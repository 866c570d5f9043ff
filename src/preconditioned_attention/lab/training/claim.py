"""``RunClaim``: one process at a time writes a run's folder."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..._extras import require
from .folder import RunFolder
from .processes import raise_on_all_ranks

if TYPE_CHECKING:
    from accelerate import Accelerator

CLAIM = ".claim"
LEASE_SECONDS = 60.0
"""A claim whose process was not heard of for so long may be taken over. Every process must use the same value."""


class ClaimedError(RuntimeError):
    """Another process that is alive writes this run's folder."""


class ClaimLostError(RuntimeError):
    """Another process took this run over, because this one was not heard of for too long."""


class RunClaim:
    """A claim of a run's folder, for the processes of all machines that see it: a file with a heartbeat.

    The file is `filelock.SoftFileLease`: created atomically, touched by a thread three times per ``lease_seconds``. It
    is taken over at once if its process is dead on this machine, and otherwise after ``lease_seconds`` without a touch.
    A process may claim a folder several times; the last release removes the file.

    Args:
        folder: the run's folder; it is created if it does not exist.
        lease_seconds: how long a process on another machine may be silent.
    """

    def __init__(self, folder: Path, *, lease_seconds: float = LEASE_SECONDS) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        # One instance per path and process: it sees how long another process has been silent, and counts its claims.
        self._lease: Any = require("filelock", extra="train").SoftFileLease(
            str((folder / CLAIM).resolve()), lease_duration=lease_seconds, is_singleton=True, thread_local=False
        )

    def try_acquire(self) -> bool:
        """Claim the folder if no other living process does; ask again to see whether that process is still alive.

        Raises:
            OSError: the folder cannot be written to.
        """
        from filelock import Timeout

        try:
            self._lease.acquire(timeout=0)
        except Timeout:
            return False
        return True

    def acquire(self) -> None:
        """Claim the folder.

        Raises:
            ClaimedError: another living process has it.
            OSError: the folder cannot be written to.
        """
        if not self.try_acquire():
            raise ClaimedError(
                f"the run in {self.folder} is being written by process {self.owner()}; wait for it, stop it, or "
                f"choose another folder (if that machine is gone, try again in {self._lease.lease_duration:g} seconds)"
            )

    def check(self) -> None:
        """Raise unless this process still has the claim; call it before anything is written.

        Raises:
            ClaimLostError: another process took it over.
        """
        if self._lease.compromise is not None:
            raise ClaimLostError(
                f"the run in {self.folder} was taken over by process {self.owner()}, because this process was not "
                f"heard of for {self._lease.lease_duration:g} seconds; it has stopped and written nothing since"
            )

    def owner(self) -> str:
        """The process that has the claim, as ``"1234 on host"``; ``"unknown"`` if the file cannot be read."""
        record = self._lease.owner
        return "unknown" if record is None else f"{record.pid} on {record.hostname.split('?')[0]}"

    def release(self) -> None:
        """Give the claim back once. Releasing what is not held is no error."""
        self._lease.release()

    def __enter__(self) -> RunClaim:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


@contextlib.contextmanager
def claimed(folder: RunFolder, accelerator: Accelerator) -> Iterator[Callable[[], None]]:
    """Make and claim a run's folder for all processes of the run; yields a check that nobody took it over.

    Raises:
        ClaimedError: a living process of another run has it. OSError: the folder cannot be written to.
    """
    claim: RunClaim | None = None
    with raise_on_all_ranks(accelerator):
        if accelerator.is_main_process:
            folder.make()
            claim = RunClaim(folder.path)
            claim.acquire()
    try:
        yield _nothing if claim is None else claim.check
    finally:
        if claim is not None:
            claim.release()


def _nothing() -> None:
    """The check on processes that hold no claim."""
