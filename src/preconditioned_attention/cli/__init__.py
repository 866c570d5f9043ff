"""The command ``precond``: finds the command, prints what went wrong in one line."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from .._checks import check_known
from .._extras import require

COMMANDS = {
    "train": "train one arm of a recipe; stops and resumes",
    "compare": "train with and without preconditioning, several seeds, and report the differences",
    "data": "write data that need no download",
    "export": "write the model of a run in the form that other libraries read",
    "glue": "fine-tune a pretrained model on GLUE, several trials, and report the medians",
    "inspect": "what a conversion would do to a model of timm or transformers, and how its heads are conditioned",
    "sweep": "convert every attention of the libraries that are installed, and count",
    "support": "which attention classes are converted, and how",
    "texts": "for maintainers: attention classes of a library whose code nobody has read yet",
    "bench": "time and memory against plain attention, on this machine",
}
"""The name of a command is that of its module here and of the function in it, or of a dictionary of functions by the
names of its own commands; the module loads when it is asked for."""

USER_ERROR = 2
INTERRUPTED = 130
PACKAGE = Path(__file__).resolve().parents[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``precond`` with these arguments (default: the command line's) and return the exit code.

    0 on success, 2 for an error that the user can mend, printed as one line. Any other error keeps its traceback.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print(_usage())
        return 0 if given else USER_ERROR
    try:
        check_known("command", given[:1], COMMANDS)
        _call(given[0], given[1:])
    except KeyboardInterrupt:
        print("precond: interrupted; what was complete is on the disk", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if not _is_for_user(error):
            raise
        print(f"precond: {error}", file=sys.stderr)
        return USER_ERROR
    return 0


def _call(command: str, arguments: list[str]) -> None:
    tyro = require("tyro", extra="train")
    function = getattr(importlib.import_module(f".{command}", __name__), command)
    options = {"prog": f"precond {command}", "args": arguments, "config": (tyro.conf.FlagCreatePairsOff,)}
    if isinstance(function, dict):  # a command with commands of its own
        tyro.extras.subcommand_cli_from_dict(function, **options)
    else:
        tyro.cli(function, **options)


def _usage() -> str:
    lines = (f"  {name:<10}{text}" for name, text in COMMANDS.items())
    return "\n".join(
        ["usage: precond COMMAND ...", "", *lines, "", "precond COMMAND --help shows a command's options."]
    )


def _is_for_user(error: Exception) -> bool:
    """Whether the user can mend it: files and disks, and what this package raises on purpose.

    What another library raises is a defect of ours and needs its traceback.
    """
    frames = list(traceback.walk_tb(error.__traceback__))
    raised_here = PACKAGE in Path(frames[-1][0].f_code.co_filename).resolve().parents
    on_purpose = isinstance(error, ValueError | TypeError | ImportError | RuntimeError)
    return isinstance(error, OSError) or (raised_here and on_purpose)
