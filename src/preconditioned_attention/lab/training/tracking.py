"""The trackers of a run, TensorBoard's files, with errors that name them."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import WriteError

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def tracking(accelerator: Accelerator, folder: Path, *, first_step: int) -> Iterator[None]:
    """Inside, :func:`track` writes to ``folder``; what it holds from ``first_step`` on is replaced.

    Raises:
        WriteError: the files cannot be written.
    """
    with _without_tracebacks_of_writers():
        with _naming(folder):
            accelerator.init_trackers(folder.name, init_kwargs={"tensorboard": {"purge_step": first_step}})
        try:
            yield
        finally:
            for tracker in accelerator.trackers:
                try:
                    tracker.finish()
                except OSError as error:  # the numbers are in metrics.jsonl too
                    logger.warning("the last numbers are missing in %s: %s", folder, error.strerror or error)


def track(accelerator: Accelerator, values: Mapping[str, float], step: int) -> None:
    """Pass numbers on to the trackers.

    Raises:
        WriteError: their files cannot be written.
    """
    with _naming(Path(accelerator.logging_dir) / "tensorboard"):
        accelerator.log(dict(values), step)


@contextlib.contextmanager
def _naming(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # that of a full disk comes from another thread, and names no file
        raise WriteError(f"{folder} could not be written: {error.strerror or error}") from error


@contextlib.contextmanager
def _without_tracebacks_of_writers() -> Iterator[None]:
    """Inside, a thread of TensorBoard that cannot write prints no traceback: its error is raised by the next call."""
    former = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if not (
            type(arguments.thread).__module__.startswith("tensorboard") and isinstance(arguments.exc_value, OSError)
        ):
            former(arguments)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = former
