"""Checkpoints of a run: written in full or not at all, and loaded.

A checkpoint is written to a temporary folder, synchronized to disk and then renamed. Weights are in safetensors files;
optimizer, schedule, gradient scaler and random states as Accelerate saves them. Of a sharded run everything is in the
layout of ``torch.distributed.checkpoint``. Every run reads both: unsharded runs keep the layout whose weights other
tools read, and that earlier versions wrote. The sampler has no state: the order of the batches is a function of the
seed and the step.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..._extras import require
from ..._files import publish
from .best import load_best, save_best
from .errors import WriteError
from .processes import describe_error, raise_on_all_ranks
from .sharded_checkpoint import is_sharded, read_shards, write_shards
from .sharding import distribute_like
from .state import TrainState

WEIGHTS_FILE = "model.safetensors"
AVERAGE_FILE = "average.safetensors"
BEST_FILE = "best.safetensors"
PREFIX = "step-"
WRITING = ".writing-"


def complete_checkpoints(folder: Path) -> dict[int, Path]:
    """The complete checkpoints in ``folder``, by the steps taken, oldest first."""
    paths = sorted(path for path in folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdecimal())
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
        with raise_on_all_ranks(state.accelerator):
            _read(state, path)
    except Exception as error:
        reason = f"checkpoint {path} cannot be read: {describe_error(error)}"
        raise OSError(f"{reason}; remove it to resume from the one before") from error
    state.step = int(path.name.removeprefix(PREFIX))


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the weights of the model that was evaluated.

    Raises:
        WriteError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.writing")
    try:
        _safetensors().save_model(model, str(temporary))
        publish(temporary, path)
    except Exception as error:
        temporary.unlink(missing_ok=True)
        raise WriteError(f"{path} could not be written: {describe_error(error)}") from error


def _write(state: TrainState, temporary: Path) -> None:
    if state.sharded:
        write_shards(state, temporary)
        return
    state.accelerator.save_state(str(temporary))
    if state.average is not None and state.accelerator.is_main_process:
        _safetensors().save_model(state.average, str(temporary / AVERAGE_FILE))
    if state.best is not None and state.accelerator.is_main_process:
        save_best(state.best, temporary / BEST_FILE)


def _read(state: TrainState, path: Path) -> None:
    if is_sharded(path):
        read_shards(state, path)
        return
    if state.sharded:
        _read_into_shards(state, path)
    else:
        state.accelerator.load_state(str(path))
        if state.average is not None:
            _safetensors().load_model(state.average, path / AVERAGE_FILE)
    if (path / BEST_FILE).exists():
        best, evaluated = load_best(path / BEST_FILE), state.evaluated.state_dict()
        weights = {name: distribute_like(tensor, evaluated[name]) for name, tensor in best.weights.items()}
        state.best = dataclasses.replace(best, weights=weights)


def _read_into_shards(state: TrainState, path: Path) -> None:
    """Read the checkpoint of an unsharded run, whole on every process, into a sharded one."""
    _load_divided(state.unwrapped, path / WEIGHTS_FILE)
    if state.average is not None:
        _load_divided(state.average, path / AVERAGE_FILE)
    saved = torch.load(path / "optimizer.bin", map_location="cpu", weights_only=True)
    parameters = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
    for number, values in saved["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.ndim > 0:
                values[name] = distribute_like(value, parameters[number])
    state.optimizer.load_state_dict(saved)
    state.scheduler.load_state_dict(torch.load(path / "scheduler.bin", weights_only=True))
    if state.accelerator.scaler is not None:
        state.accelerator.scaler.load_state_dict(torch.load(path / "scaler.pt", weights_only=True))


def _load_divided(model: nn.Module, path: Path) -> None:
    """Copy every tensor of the file into the module; of tied weights the file has one name."""
    targets, read = model.state_dict(), _safetensors().load_file(str(path))
    for name, tensor in read.items():
        targets[name].copy_(distribute_like(tensor, targets[name]))


def _tidy(folder: Path, keep: int) -> None:
    """Remove all but the newest checkpoints, and unfinished ones of killed runs."""
    for path in [*list(complete_checkpoints(folder).values())[:-keep], *folder.glob(f"{WRITING}*")]:
        shutil.rmtree(path)


def _failure(path: Path, folder: Path, error: Exception) -> str:
    complete = list(complete_checkpoints(folder).values())
    left = f"the newest complete one is {complete[-1]}" if complete else "there is no complete one yet"
    failure = f"checkpoint {path} could not be written ({describe_error(error)})"
    return f"{failure}; {left}. Free some space, then continue with --resume"


def _safetensors() -> Any:
    return require("safetensors.torch", extra="train")
