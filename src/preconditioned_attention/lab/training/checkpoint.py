"""Checkpoints of a run: written in full or not at all, and loaded.

A checkpoint is written to a temporary folder, synchronized to disk and then renamed. Weights are in safetensors files;
optimizer, schedule, gradient scaler and random states as Accelerate saves them. The sampler has no state: the order of
the batches is a function of the seed and the step.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ..._extras import require
from ..._files import publish
from .best import load_best, save_best
from .errors import WriteError
from .processes import raise_on_all_ranks
from .state import TrainState

AVERAGE_FILE = "average.safetensors"
BEST_FILE = "best.safetensors"
PREFIX = "step-"
WRITING = ".writing-"


def complete_checkpoints(folder: Path) -> dict[int, Path]:
    """The complete checkpoints in ``folder``, by the steps taken, oldest first."""
    paths = sorted(folder.glob(f"{PREFIX}*"))
    return {int(path.name.removeprefix(PREFIX)): path for path in paths}


def save_checkpoint(state: TrainState, folder: Path) -> Path:
    """Write the state as ``folder/step-<steps taken>`` and remove all but the newest ``keep_checkpoints``.

    Raises:
        WriteError: it could not be written, on any process; earlier checkpoints are intact.
    """
    path = folder / f"{PREFIX}{state.step:08d}"
    if path.exists():  # a step has one state only
        return path
    temporary = folder / f"{WRITING}{path.name}"
    main = state.accelerator.is_main_process
    try:
        with raise_on_all_ranks(state.accelerator):
            if main:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
        with raise_on_all_ranks(state.accelerator):
            _write(state, temporary)
        with raise_on_all_ranks(state.accelerator):
            if main:
                publish(temporary, path)
                _tidy(folder, state.config.keep_checkpoints)
    except Exception as error:  # Accelerate and safetensors raise OSError, RuntimeError or errors of their own
        shutil.rmtree(temporary, ignore_errors=True)
        raise WriteError(_failure(path, folder, error)) from error
    return path


def load_checkpoint(state: TrainState, path: Path) -> None:
    """Restore ``state`` from the checkpoint at ``path``.

    Raises:
        OSError: the checkpoint cannot be read.
    """
    try:
        state.accelerator.load_state(str(path))
        if state.average is not None:
            _safetensors().load_model(state.average, path / AVERAGE_FILE)
        if (path / BEST_FILE).exists():
            state.best = load_best(path / BEST_FILE)
    except Exception as error:
        raise OSError(f"checkpoint {path} cannot be read: {error}; remove it to resume from the one before") from error
    state.step = int(path.name.removeprefix(PREFIX))


def save_weights(state: TrainState, path: Path) -> None:
    """Write the weights of the model that is evaluated.

    Raises:
        WriteError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.writing")
    try:
        _safetensors().save_model(state.evaluated, str(temporary))
        publish(temporary, path)
    except Exception as error:
        temporary.unlink(missing_ok=True)
        raise WriteError(f"{path} could not be written: {error}") from error


def _write(state: TrainState, temporary: Path) -> None:
    state.accelerator.save_state(str(temporary))
    if state.average is not None and state.accelerator.is_main_process:
        _safetensors().save_model(state.average, str(temporary / AVERAGE_FILE))
    if state.best is not None and state.accelerator.is_main_process:
        save_best(state.best, temporary / BEST_FILE)


def _tidy(folder: Path, keep: int) -> None:
    """Remove all but the newest checkpoints, and unfinished ones of killed runs."""
    for path in [*list(complete_checkpoints(folder).values())[:-keep], *folder.glob(f"{WRITING}*")]:
        shutil.rmtree(path)


def _failure(path: Path, folder: Path, error: Exception) -> str:
    complete = list(complete_checkpoints(folder).values())
    left = f"the newest complete one is {complete[-1]}" if complete else "there is no complete one yet"
    return f"checkpoint {path} could not be written ({error}); {left}. Free some space, then continue with --resume"


def _safetensors() -> Any:
    return require("safetensors.torch", extra="train")
