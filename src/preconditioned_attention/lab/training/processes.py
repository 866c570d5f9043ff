"""The ``Accelerator`` of a run, and exceptions that every process raises."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..._extras import require
from .config import TrainConfig

if TYPE_CHECKING:
    from accelerate import Accelerator

MIXED_PRECISION = {"float32": "no", "float64": "no", "bfloat16": "bf16", "float16": "fp16"}


def make_accelerator(config: TrainConfig, output: Path) -> Accelerator:
    """An accelerator for this run on the available device; Accelerate's environment variables apply.

    Raises:
        ValueError: the device cannot compute in ``config.precision``.
        RuntimeError: several processes were launched and they are not connected.
    """
    accelerate = require("accelerate", extra="train")
    mixed_precision = MIXED_PRECISION[config.precision]
    if accelerate.state.is_initialized() and accelerate.state.AcceleratorState().mixed_precision != mixed_precision:
        accelerate.state.AcceleratorState._reset_state()  # an earlier run of this process, in another precision
    accelerator = accelerate.Accelerator(
        # Without an accelerator device Accelerate connects launched processes only if told to use the CPU.
        cpu=not torch.accelerator.is_available(),
        mixed_precision=mixed_precision,
        gradient_accumulation_plugin=accelerate.utils.GradientAccumulationPlugin(
            num_steps=config.accumulation_steps, sync_with_dataloader=False
        ),
        step_scheduler_with_optimizer=False,
        log_with="tensorboard" if accelerate.utils.is_tensorboard_available() else None,
        project_dir=output,
    )
    _check_device(accelerator, config)
    return accelerator


def _check_device(accelerator: Accelerator, config: TrainConfig) -> None:
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != launched:
        raise RuntimeError(
            f"{launched} processes were launched and each would train alone on {accelerator.device}; "
            "set ACCELERATE_USE_CPU=1 to train together on the CPU"
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
    errors = [other for other in gather_object([error]) if other is not None]
    if errors:
        raise error or errors[0]
