"""Writing a folder in full or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..._files import publish
from .image_files import one_line, printable


def check_new(output: Path) -> None:
    """Raise ``ValueError`` if something is at ``output``, be it a link that leads nowhere."""
    if os.path.lexists(output):
        raise ValueError(f"output {printable(output)} exists already; remove it or choose another folder")


@contextmanager
def write_folder(output: Path) -> Iterator[Path]:
    """A temporary folder beside ``output``, which becomes ``output`` when the block ends, and is removed if it raises.

    Raises:
        ValueError: ``output`` exists.
        OSError: it cannot be written; the message names it.
    """
    check_new(output)
    temporary = output.with_name(f".{output.name}.writing-{os.getpid()}")  # other processes may write the same folder
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        publish(temporary, output)
    except OSError as error:
        reason = error.strerror or one_line(error)  # that of a full disk names no file
        raise OSError(f"output {printable(output)} cannot be written: {reason}; choose another folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
