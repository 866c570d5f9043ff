"""Giving finished files and folders their names."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` to ``path``: a reader, also after a kill, finds the old content or the new, never a part.

    Raises:
        OSError: it could not be written; ``path`` is as it was.
    """
    temporary = path.with_name(f".{path.name}.writing")
    try:
        temporary.write_text(text, encoding="utf-8")
        publish(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def publish(temporary: Path, path: Path) -> None:
    """Rename a finished file or folder; everything in it is on the disk before it has its name."""
    for child in sorted(temporary.rglob("*"), reverse=True) if temporary.is_dir() else ():
        _synchronise(child)
    _synchronise(temporary)
    temporary.replace(path)
    _synchronise(path.parent)


def _synchronise(path: Path) -> None:
    if os.name == "nt":  # Windows opens no folders; the rename is all or nothing there too
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
