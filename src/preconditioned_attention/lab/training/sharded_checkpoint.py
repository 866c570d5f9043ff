"""The checkpoint of a sharded run, by ``torch.distributed.checkpoint``: every process writes and reads its own part.

Tensors have the keys ``part/name``, optimizer states ``optimizer/number of the parameter/name``, as in the state
dictionary of an optimizer; everything else is one entry. A run with any number of processes reads it, sharded or not.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .best import BestWeights
from .processes import describe_error
from .state import TrainState

METADATA = ".metadata"
PLAIN = "plain"


def is_sharded(path: Path) -> bool:
    """Whether the checkpoint was written by :func:`write_shards`.

    Raises:
        FileNotFoundError: the file is missing without which the parts cannot be read.
    """
    if (path / METADATA).exists():
        return True
    if any(path.glob("*.distcp")):
        raise FileNotFoundError(f"{path / METADATA} is missing")
    return False


def write_shards(state: TrainState, path: Path) -> None:
    """Write the state into the folder ``path``; every process must call it.

    Raises:
        OSError: it could not be written, on any process.
    """
    from torch.distributed.checkpoint import FileSystemWriter, save

    optimizer = state.optimizer.optimizer.state_dict()
    plain: dict[str, Any] = {
        "param_groups": optimizer["param_groups"],
        "values": {key: value for key, value in _states(optimizer["state"]) if not isinstance(value, Tensor)},
        "schedule": state.scheduler.state_dict(),
        "scaler": None if state.accelerator.scaler is None else state.accelerator.scaler.state_dict(),
        "best": None if state.best is None else {"step": state.best.step, "metric": state.best.metric},
    }
    tensors = {key: _summed(value) for key, value in _states(optimizer["state"]) if isinstance(value, Tensor)}
    tensors |= _weights(state)
    if state.best is not None:
        tensors |= _keyed("best", state.best.weights)
    with _one_line_errors():
        save({**tensors, PLAIN: _packed(plain)}, storage_writer=FileSystemWriter(path))


def read_shards(state: TrainState, path: Path) -> None:
    """Restore ``state`` from the folder; every process must call it. A run without a process group reads it alone.

    Raises:
        OSError: it cannot be read.
    """
    from torch.distributed.checkpoint import FileSystemReader, load

    reader = FileSystemReader(path)
    saved = reader.read_metadata().state_dict_metadata
    read: dict[str, Any] = {**_weights(state), PLAIN: b""}
    evaluated, parameters = state.evaluated.state_dict(), _parameters(state)
    for key, entry in saved.items():
        part, _, name = key.partition("/")
        if part == "best":
            read[key] = torch.empty_like(evaluated[name])
        elif part == "optimizer":
            read[key] = _space(parameters[int(name.partition("/")[0])], entry)
    with _one_line_errors(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load(read, storage_reader=reader)
    _restore(state, read, torch.load(io.BytesIO(read[PLAIN]), weights_only=True))


def _restore(state: TrainState, read: Mapping[str, Any], plain: Mapping[str, Any]) -> None:
    """What is not loaded in place; weights are."""
    values: dict[int, dict[str, Any]] = {}
    for key, value in {**read, **plain["values"]}.items():
        part, _, name = key.partition("/")
        if part == "optimizer":
            number, _, name = name.partition("/")
            values.setdefault(int(number), {})[name] = value
    state.optimizer.load_state_dict({"state": values, "param_groups": plain["param_groups"]})
    state.scheduler.load_state_dict(plain["schedule"])
    if state.accelerator.scaler is not None:
        state.accelerator.scaler.load_state_dict(plain["scaler"])
    if plain["best"] is not None:
        weights = {key.removeprefix("best/"): read[key] for key in read if key.startswith("best/")}
        state.best = BestWeights(**plain["best"], weights=weights)


def _weights(state: TrainState) -> dict[str, Tensor]:
    average = {} if state.average is None else _keyed("average", state.average.state_dict())
    return {**_keyed("model", state.unwrapped.state_dict()), **average}


def _keyed(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{part}/{name}": tensor for name, tensor in tensors.items()}


def _states(states: Mapping[int, Mapping[str, Any]]) -> Iterator[tuple[str, Any]]:
    for number, values in states.items():
        for name, value in values.items():
            yield f"optimizer/{number}/{name}", value


def _parameters(state: TrainState) -> list[Tensor]:
    return [parameter for group in state.optimizer.param_groups for parameter in group["params"]]


def _space(parameter: Tensor, entry: Any) -> Tensor:
    """A tensor for an optimizer state: divided as the parameter if it has its shape, else whole on every process."""
    from torch.distributed.tensor import DTensor, Replicate
    from torch.distributed.tensor import empty as empty_dtensor

    dtype = entry.properties.dtype
    if entry.size == parameter.shape and parameter.ndim > 0:
        return torch.empty_like(parameter, dtype=dtype)
    if not isinstance(parameter, DTensor) or not entry.size:
        return torch.empty(entry.size, dtype=dtype)
    mesh = parameter.device_mesh
    return empty_dtensor(entry.size, dtype=dtype, device_mesh=mesh, placements=[Replicate()] * mesh.ndim)


def _summed(tensor: Tensor) -> Tensor:
    """A state of which every process has a summand, such as the mean over a divided axis, whole; others unchanged."""
    from torch.distributed.tensor import DTensor, Replicate

    if isinstance(tensor, DTensor) and any(placement.is_partial() for placement in tensor.placements):
        return tensor.redistribute(placements=[Replicate()] * tensor.device_mesh.ndim)
    return tensor


def _packed(plain: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(plain, buffer)
    return buffer.getvalue()


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Turn the exception of all processes together, which is not an ``Exception``, into what the first one said."""
    from torch.distributed.checkpoint import CheckpointException

    try:
        yield
    except CheckpointException as error:
        first, _ = next(iter(error.failures.values()))
        raise OSError(describe_error(first)) from error
