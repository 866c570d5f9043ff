"""Atomic file and folder writes."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write ``content`` to ``path``: a reader, also after a crash, finds the old content or the new, never a part.

    Raises:
        OSError: it could not be written; ``path`` is as it was.
    """
    temporary = path.with_name(f".{path.name}.writing")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        publish(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def publish(temporary: Path, path: Path) -> None:
    """Rename a finished file or folder to ``path``, after everything in it was flushed to the disk."""
    for child in sorted(temporary.rglob("*"), reverse=True) if temporary.is_dir() else ():
        _flush_to_disk(child)
    _flush_to_disk(temporary)
    temporary.replace(path)
    _flush_to_disk(path.parent)


def _flush_to_disk(path: Path) -> None:
    if os.name == "nt":  # Windows cannot open folders; its rename is atomic without
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
