"""Running a function in a forked process, where it may crash or hang, and what it raised."""

import contextlib
import io
import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import NamedTuple

import torch

from preconditioned_attention.cli import _is_for_user, main

SECONDS = 60


class Outcome(NamedTuple):
    """How a function ended: the type and the message of its error, and whether the command line would exit with 2."""

    error: str
    message: str
    exits_with_2: bool


def outcome(function: Callable[[], object], *, seconds: float = SECONDS) -> Outcome:
    """Run ``function`` in a process of its own, which is killed after ``seconds``.

    Raises:
        AssertionError: the process crashed, or did not end in time.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(function, sender))
    process.start()
    sender.close()
    try:
        assert receiver.poll(seconds), f"did not end within {seconds} seconds"
        return Outcome(*receiver.recv())
    except EOFError:
        process.join()
        raise AssertionError(f"the process crashed: exit code {process.exitcode}") from None
    finally:
        process.kill()
        process.join()


def command(*arguments: object) -> None:
    """Run ``precond`` and raise what it would print: its one line after everything else on the error stream.

    Raises:
        RuntimeError: the exit code is 2; the message is that line.
        AssertionError: the exit code is another one, or the error stream holds more than the line.
    """
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        code = main([str(argument) for argument in arguments])
    lines = [line for line in errors.getvalue().splitlines() if line.strip()]
    assert code == 2, f"exit code {code}: {lines}"
    assert "Traceback" not in errors.getvalue()
    assert lines[-1].startswith("precond: "), lines
    raise CommandError(lines[-1])


class CommandError(Exception):
    """The exit code was 2."""


def _report(function: Callable[[], object], sender: Connection) -> None:
    torch.set_num_threads(1)  # threads of OpenMP do not survive a fork
    try:
        function()
        sender.send(("none", "", False))
    except Exception as error:
        sender.send((type(error).__name__, str(error), isinstance(error, CommandError) or _is_for_user(error)))
