"""The ``Accelerator`` of a run, and exceptions that every process raises."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..._extras import require
from .config import TrainConfig
from .launch import MIXED_PRECISION, check_launch, is_true
from .restarts import leave_former_store

if TYPE_CHECKING:
    from accelerate import Accelerator


def make_accelerator(config: TrainConfig, output: Path) -> Accelerator:
    """An accelerator for this run on the available device; Accelerate's environment variables apply.

    Raises:
        ValueError: the device cannot compute in ``config.precision``, or Accelerate would ignore what is asked for.
        RuntimeError: several processes were launched and they are not connected.
    """
    require("accelerate", extra="train")
    check_launch(config)
    leave_former_store()
    _forget_earlier_run(MIXED_PRECISION[config.precision])
    if is_true("ACCELERATE_USE_FSDP"):
        # Accelerate's launcher sets it by default. Every process builds the model from the seed, and transformers reads
        # it too and would leave the weights of all but one process empty.
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    try:
        accelerator = _connect(config, output)
    except Exception as error:  # of Accelerate's options, or of PyTorch while the processes find each other
        raise RuntimeError(f"the processes of the run could not be set up: {describe_error(error)}") from error
    _check_device(accelerator, config)
    return accelerator


def _forget_earlier_run(mixed_precision: str) -> None:
    """Reset Accelerate's state of an earlier run of this process, if this one needs another."""
    state = require("accelerate", extra="train").state
    if not state.is_initialized():
        return
    sharded = is_true("ACCELERATE_USE_FSDP") or state.AcceleratorState().distributed_type == "FSDP"
    if sharded or state.AcceleratorState().mixed_precision != mixed_precision:
        state.AcceleratorState._reset_state(reset_partial_state=sharded)


def _connect(config: TrainConfig, output: Path) -> Accelerator:
    accelerate = require("accelerate", extra="train")
    accelerator: Accelerator = accelerate.Accelerator(
        # Without an accelerator device Accelerate connects launched processes only if told to use the CPU.
        cpu=not torch.accelerator.is_available(),
        mixed_precision=MIXED_PRECISION[config.precision],
        gradient_accumulation_plugin=accelerate.utils.GradientAccumulationPlugin(
            num_steps=config.accumulation_steps, sync_with_dataloader=False
        ),
        step_scheduler_with_optimizer=False,
        log_with="tensorboard" if accelerate.utils.is_tensorboard_available() else None,
        project_dir=output,
    )
    return accelerator


def _check_device(accelerator: Accelerator, config: TrainConfig) -> None:
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != launched:
        raise RuntimeError(
            f"{launched} processes were launched and each would train alone on {accelerator.device}; "
            "set ACCELERATE_USE_CPU=1 to train together on the CPU"
        )
    if is_true("ACCELERATE_USE_FSDP") and accelerator.distributed_type != "FSDP":
        raise ValueError(
            "ACCELERATE_USE_FSDP=true would be ignored: Accelerate shards over the processes of a launcher on "
            f"accelerators only, and this run has {accelerator.num_processes} on {accelerator.device}; unset it and "
            "use --fsdp (fsdp=True), which shards on any device"
        )
    device = accelerator.device.type
    if config.precision == "float16" and device == "cpu":
        raise ValueError("precision 'float16' needs a GPU; use 'bfloat16' or 'float32' on the CPU")
    if config.precision == "float64" and device == "mps":
        raise ValueError("precision 'float64' is not available on this GPU (mps); set ACCELERATE_USE_CPU=1")


@contextmanager
def raise_on_all_ranks(accelerator: Accelerator) -> Iterator[None]:
    """Raise an exception of any process on every process, so that none waits for another forever."""
    from accelerate.utils import gather_object

    error: Exception | None = None
    try:
        yield
    except Exception as caught:
        error = caught
    errors = [other for other in gather_object([_sendable(error)]) if other is not None]
    if errors:
        raise error or errors[0]


def on_main(accelerator: Accelerator, function: Callable[[], bool]) -> bool:
    """What ``function`` returns on the main process, which alone calls it, on every process."""
    from accelerate.utils import broadcast_object_list

    values = [function() if accelerator.is_main_process else False]
    return broadcast_object_list(values)[0]


def _sendable(error: Exception | None) -> Exception | None:
    """The error, or one that says the same if it cannot be sent to other processes."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(describe_error(error))


def describe_error(error: BaseException | None) -> str:
    """What an error says, in one line; those of other libraries have many, or none."""
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(".") if lines else type(error).__name__
