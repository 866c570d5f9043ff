"""The command ``precond``: dispatch to its commands, exit codes, errors in one line.

Each command's module holds its options, which `tyro` parses, and imports torch and the lab only when it runs.
"""

from __future__ import annotations

import importlib
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from .._checks import check_known
from .._extras import require
from .._version import __version__
from ._interrupts import INTERRUPTED, MESSAGE, interruptible
from ._streams import output_failure, say, usable_streams

COMMANDS = {
    "train": "train one arm of a recipe; can be stopped and resumed",
    "compare": "train with and without preconditioning, several seeds, and report the differences",
    "report": "report the runs in folders from any number of machines",
    "data": "write datasets that need no download",
    "export": "write the model of a finished run in the format of another library",
    "glue": "fine-tune a pretrained model on GLUE, several trials, and report the medians",
    "inspect": "list the attention modules of a timm or transformers model and measure their condition numbers",
    "sweep": "convert every attention class of the installed libraries and count the outcomes",
    "support": "list the attention classes that are converted, and how",
    "texts": "for maintainers: print the source of attention classes that has not been reviewed",
    "bench": "measure time and memory against plain attention on this machine",
}
"""Command name -> its line in the help. The module of the same name here holds a function of the same name, or a
dictionary of functions if the command has commands of its own."""

RESUMABLE = ("train", "compare")
"""The commands that continue what they began with ``--resume``."""

USER_ERROR = 2
CLOSED = 141  # as the shell reports a process that ended by SIGPIPE
PACKAGE = Path(__file__).resolve().parents[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``precond`` with these arguments (default: the command line's) and return the exit code.

    0 on success, 2 for an error that the user can correct, printed as one line, 130 after Ctrl-C, 143 after SIGTERM in
    a run, 141 if the reader of standard output has closed it, as `head` does. Any other error keeps its traceback.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    with usable_streams(), interruptible():
        try:
            return _run_and_flush(given)
        except KeyboardInterrupt as error:
            return _report_interruption(error, given)
        except SystemExit as ended:  # rich ends the process so
            if isinstance(ended.__context__, BrokenPipeError):
                return CLOSED
            raise
        except Exception as error:
            return _report(error)


def _run_and_flush(given: list[str]) -> int:
    try:
        return _run(given)
    finally:
        sys.stdout.flush()  # not when Python ends, where an error would be a traceback


def _run(given: list[str]) -> int:
    if not given or given[0] in ("-h", "--help"):
        print(_usage())
        return 0 if given else USER_ERROR
    if given[0] == "--version":
        print(f"precond {__version__}")
        return 0
    check_known("command", given[:1], COMMANDS)
    _call(given[0], given[1:])
    return 0


def _report(error: Exception) -> int:
    """Print an error for the user in one line; the exit code. Raises any other error."""
    failure = output_failure()
    if isinstance(failure or error, BrokenPipeError) and getattr(error, "filename", None) is None:
        return CLOSED
    if failure is not None:
        say(f"precond: standard output could not be written: {failure.strerror or failure}")
        return USER_ERROR
    if not _is_for_user(error):
        raise error
    say(f"precond: {' '.join(_words(error).split())}")
    return USER_ERROR


def _call(command: str, arguments: list[str]) -> None:
    tyro = require("tyro", extra="train")
    function = getattr(importlib.import_module(f".{command}", __name__), command)
    options = {"prog": f"precond {command}", "args": arguments, "config": (tyro.conf.FlagCreatePairsOff,)}
    if isinstance(function, dict):  # a command with commands of its own
        tyro.extras.subcommand_cli_from_dict(function, **options)
    else:
        tyro.cli(function, **options)


def _report_interruption(error: KeyboardInterrupt, given: Sequence[str]) -> int:
    """Say how to go on, on the main process; the exit code is that of the signal."""
    if os.environ.get("RANK", "0") == "0":
        stopped = f"precond: {error}" if str(error) else MESSAGE
        go_on = f". Go on with: {_continuing(given)}" if given[:1] and given[0] in RESUMABLE else ""
        say(f"{stopped}{go_on}")
    return getattr(error, "exit_code", INTERRUPTED)


def _continuing(given: Sequence[str]) -> str:
    """The command line that continues the run of this one."""
    options = [*(argument for argument in given[1:] if argument not in ("--overwrite", "--resume")), "--resume"]
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    program = "torchrun ... -m preconditioned_attention" if launched else "precond"
    return f"{program} {shlex.join([given[0], *options])}"


def _usage() -> str:
    lines = (f"  {name:<10}{text}" for name, text in COMMANDS.items())
    return "\n".join(
        ["usage: precond COMMAND ...", "", *lines, "", "precond COMMAND --help shows the options of a command."]
    )


def _is_for_user(error: Exception) -> bool:
    """Whether the user can correct it: errors of files, disks and memory, and what this package raises on purpose.

    An error that another library raises is a defect of this package, and its traceback is needed.
    """
    frames = list(traceback.walk_tb(error.__traceback__))
    raised_here = PACKAGE in Path(frames[-1][0].f_code.co_filename).resolve().parents
    on_purpose = isinstance(error, ValueError | TypeError | ImportError | RuntimeError)
    return isinstance(error, OSError) or _is_out_of_memory(error) or (raised_here and on_purpose)


def _is_out_of_memory(error: Exception) -> bool:
    """Python's and NumPy's error, or PyTorch's on a GPU (a class of its own) or on the CPU (none)."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and (type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error))
    )


def _words(error: Exception) -> str:
    if _is_out_of_memory(error):
        return (
            f"the memory of this machine does not suffice; choose smaller sizes or batches ({error or 'MemoryError'})"
        )
    if isinstance(error, OSError) and error.errno and not error.filename and error.strerror == os.strerror(error.errno):
        places = f"standard output or a temporary file (in {os.environ.get('TMPDIR', 'the folder TMPDIR')})"
        return f"{places} could not be written or read: {error.strerror}"
    return str(error) or type(error).__name__
