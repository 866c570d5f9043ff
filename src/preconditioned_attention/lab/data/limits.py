"""Checks, before anything is allocated, started or written, that what is asked for fits this machine."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ..._checks import check_integer

GIB = 2**30
PROCESSES = 64  # or eight for each core, where these are more


def check_memory(what: str, needed: float) -> None:
    """Raise if ``needed`` bytes are more than the memory of this machine.

    Args:
        what: the option with its value and what it makes, the subject of the message.
        needed: bytes, at least.

    Raises:
        ValueError: they are.
    """
    there = _memory()
    if needed > there:
        raise ValueError(
            f"{what} would take at least {needed / GIB:.3g} GiB; this machine has {there / GIB:.3g} GiB of memory"
        )


def check_disk(what: str, needed: float, folder: Path) -> None:
    """Raise if ``needed`` bytes are more than the free space where ``folder`` is or will be.

    Args:
        what: as in :func:`check_memory`.
        needed: bytes, at least.
        folder: it need not exist.

    Raises:
        ValueError: they are.
    """
    existing = next((path for path in (folder, *folder.absolute().parents) if path.is_dir()), None)
    free = shutil.disk_usage(existing).free if existing is not None else float("inf")
    if needed > free:
        raise ValueError(
            f"{what} would take at least {needed / GIB:.3g} GiB; the disk of {folder} has {free / GIB:.3g} GiB free"
        )


def check_processes(name: str, count: object) -> None:
    """Raise unless ``count`` is an integer of at least 1, and not far more than this machine has cores.

    Args:
        name: of the option, for messages.
        count: processes that are to be started.

    Raises:
        TypeError, ValueError: it is not.
    """
    most = max(PROCESSES, 8 * (os.cpu_count() or 1))
    if check_integer(name, count, minimum=1) > most:
        raise ValueError(f"{name} must be at most {most} processes on this machine; got {count}")


def _memory() -> float:
    """Bytes of memory; infinity where the system does not tell."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):  # not on Windows
        return float("inf")
