"""``RunClaim``: one process at a time writes a run's folder."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import time
import uuid
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


PATIENCE = 1.5
"""A file that `filelock` has not taken over after so many leases without a touch is taken over here."""

Stamp = tuple[int, int]

_seen: dict[Path, tuple[Stamp | None, float]] = {}
"""When this process first saw each claim's file as it is."""

logger = logging.getLogger(__name__)


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
        self._path = (folder / CLAIM).resolve()
        self._seconds = lease_seconds
        # One instance per path and process: it sees how long another process has been silent, and counts its claims.
        self._lease: Any = require("filelock", extra="train").SoftFileLease(
            str(self._path), lease_duration=lease_seconds, is_singleton=True, thread_local=False
        )

    def try_acquire(self) -> bool:
        """Claim the folder if no other living process does; ask again to see whether that process is still alive.

        Raises:
            OSError: the folder cannot be written to.
        """
        return self._acquire() or (self._silence() > PATIENCE * self._seconds and self._set_aside() and self._acquire())

    def acquire(self) -> None:
        """Claim the folder.

        If it was claimed by another machine, or by nobody who is known, this watches for as long as a process may be
        silent, and takes the folder over if nobody was heard of.

        Raises:
            ClaimedError: another living process has it.
            OSError: the folder cannot be written to.
        """
        if self.try_acquire() or (not self._is_held_here() and self._outlast()):
            return
        raise ClaimedError(
            f"the run in {self.folder} is being written by process {self.owner()}; wait for it, stop it, or choose "
            f"another folder (if no such process writes there, remove {self._path})"
        )

    def _acquire(self) -> bool:
        from filelock import Timeout

        try:
            self._lease.acquire(timeout=0)
        except Timeout:
            return False
        return True

    def _is_held_here(self) -> bool:
        """Whether the owner is a living process of this machine."""
        owner = self._lease.owner
        if owner is None:
            return False
        with tempfile.TemporaryDirectory() as folder, type(self._lease)(str(Path(folder) / CLAIM)) as own:
            return owner.hostname == own.owner.hostname and _is_alive(owner.pid)

    def _outlast(self) -> bool:
        """Watch the claim; True if it was taken over, False as soon as its owner was heard of."""
        seconds = 1.1 * PATIENCE * self._seconds
        message = "the run in %s is claimed by process %s; watching for up to %.0f seconds whether it is alive"
        logger.warning(message, self.folder, self.owner(), seconds)
        end, stamp = time.monotonic() + seconds, self._stamp()
        while time.monotonic() < end and self._stamp() == stamp:
            time.sleep(min(0.2, seconds / 100))
            if self.try_acquire():
                return True
        return False

    def _silence(self) -> float:
        """For how many seconds this process has seen the claim's file unchanged."""
        stamp, now = self._stamp(), time.monotonic()
        if _seen.get(self._path, (None, now))[0] != stamp:
            _seen[self._path] = (stamp, now)
        return now - _seen[self._path][1]

    def _stamp(self) -> Stamp | None:
        with contextlib.suppress(FileNotFoundError):
            status = self._path.stat()
            return status.st_ino, status.st_mtime_ns
        return None

    def _set_aside(self) -> bool:
        """Remove the file of a process that is gone, where `filelock` cannot: on NFS, or if it names no process.

        Of several processes that do this one can rename it. If that has taken a new claim, it is put back.
        """
        aside = self._path.with_name(f"{CLAIM}.{uuid.uuid4().hex}")
        try:
            self._path.rename(aside)
        except FileNotFoundError:
            return True
        status, judged = aside.stat(), _seen[self._path][0]
        if (status.st_ino, status.st_mtime_ns) != judged:
            with contextlib.suppress(FileExistsError):
                os.link(aside, self._path)
        aside.unlink()
        return (status.st_ino, status.st_mtime_ns) == judged

    def check(self) -> None:
        """Raise unless this process still has the claim; call it before anything is written.

        Raises:
            ClaimLostError: another process took it over.
        """
        if self._lease.compromise is not None:
            raise ClaimLostError(
                f"the run in {self.folder} was taken over by process {self.owner()}, because this process was not "
                f"heard of for {self._seconds:g} seconds; it has stopped and written nothing since"
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


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


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
