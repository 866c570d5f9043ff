"""The ``run`` function of a comparison for a training configuration."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...diagnostics import ConditionMonitor, MonitorConfig
from ..tasks import make_task
from ..training import TrainConfig, train
from ..training.errors import NonFiniteError
from .metrics import CONDITIONING_KEYS, DURING, SAMPLES, RunMetrics
from .preparation import Prepare

MONITORED_STEPS = 20  # per run, unless its configuration has a monitor

# Set by the comparison, or without effect on the results.
_NOT_SETTINGS = ("seed", "learning_rate", "precondition", "checkpoint_every", "keep_checkpoints", "monitor", "workers")


def task_run(config: TrainConfig) -> Callable[[Prepare, int, float], RunMetrics]:
    """A ``run`` for :func:`compare` that trains the task of ``config``.

    Seed, learning rate and preconditioning come from the comparison. The conditioning of attention is measured before
    the first step and after the last on a fixed batch of validation examples, and in between on the training batches.
    The run's own files go to a temporary folder, because a comparison resumes at whole runs.
    """
    task = make_task(config.task, config.task_options)
    batch = task.example_batch()
    monitor = config.monitor or MonitorConfig(every=max(1, config.steps // MONITORED_STEPS))

    def run(prepare: Prepare, seed: int, learning_rate: float) -> RunMetrics:
        at_initialization: list[dict[str, Any]] = []

        def prepare_and_measure(model: nn.Module) -> nn.Module:
            prepare(model)
            at_initialization.extend(measure_conditioning(model, batch))
            return model

        variant = dataclasses.replace(config, task_options={**config.task_options, **prepare.options})
        run_config = dataclasses.replace(
            variant, seed=seed, learning_rate=learning_rate, precondition=None, checkpoint_every=None, monitor=monitor
        )
        with tempfile.TemporaryDirectory(prefix="precond-") as folder:
            try:
                result = train(run_config, Path(folder), prepare=prepare_and_measure, progress=False)
            except NonFiniteError as error:
                # The message names a checkpoint in the temporary folder; the cause is the error itself.
                raise error.__cause__ or error from None
        moments = (("initialization", at_initialization), ("end", measure_conditioning(result.model, batch)))
        return RunMetrics(
            validation=result.validation[task.metric],
            test=result.test[task.metric],
            losses=result.losses,
            seconds_per_step=result.seconds_per_step,
            evaluations=result.evaluations,
            conditioning=[
                *({**row, "moment": moment} for moment, rows in moments for row in rows),
                *({**_reported(row), "moment": DURING} for row in result.conditioning),
            ],
            extra={
                "validation_metrics": result.validation,
                "test_metrics": result.test,
                **({SAMPLES: result.samples} if result.samples else {}),
            },
            pictures=result.pictures,
        )

    return run


def _reported(row: dict[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in ("step", *CONDITIONING_KEYS)}


def task_settings(config: TrainConfig) -> dict[str, Any]:
    """The options of ``config``, and the task's data, that determine the results, as plain values."""
    settings = {name: value for name, value in config.to_dict().items() if name not in _NOT_SETTINGS}
    data = make_task(config.task, config.task_options).describe_data()
    return {**settings, "data": data} if data else settings


def measure_conditioning(model: nn.Module, batch: tuple[Tensor, ...]) -> list[dict[str, Any]]:
    """Condition number and row-norm spread per attention layer, before and after C, in evaluation mode.

    Computed with a copy of the model in float64 on the CPU: at initialization, attention rows are nearly parallel, and
    float32 cannot distinguish their condition numbers from infinity.
    """
    copied = copy.deepcopy(model).to("cpu", torch.float64).eval()
    arguments = [entry.to("cpu", torch.float64 if entry.is_floating_point() else None) for entry in batch]
    with torch.no_grad(), ConditionMonitor(copied) as monitor:
        copied(*arguments)
    return monitor.summary()
