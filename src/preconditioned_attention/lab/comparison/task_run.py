"""The ``run`` function of a comparison for a training configuration."""

from __future__ import annotations

import copy
import dataclasses
import os
import shutil
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ...diagnostics import ConditionMonitor, MonitorConfig
from ..tasks import Task, make_task
from ..training import TrainConfig, TrainResult, train
from ..training.errors import NonFiniteError
from ..training.folder import RunFolder
from ..training.randomness import Stream, derive_seed, seed_all
from .metrics import CONDITIONING_KEYS, DURING, SAMPLES, RunMetrics
from .preparation import Prepare
from .threads import one_thread
from .train_folder import plain_settings

MONITORED_STEPS = 20  # per run, unless its configuration has a monitor
CHECKPOINTS = 10  # per run, unless its configuration says how often
CHANGING_NO_NUMBER = ("checkpoint_every", "keep_checkpoints", "workers")


@dataclass(frozen=True)
class TaskRun:
    """A ``run`` for :func:`compare` that trains the task of ``config`` in the run's own folder, and goes on there.

    Seed, learning rate and preconditioning come from the comparison. The conditioning of attention is measured before
    the first step and after the last on a fixed batch of validation examples, and in between on the training batches.
    On a CPU it computes with one thread, whatever the number of workers, so that results do not depend on it. The
    folder is one of :func:`train`. Its checkpoints are removed when the run has finished.
    """

    config: TrainConfig
    fsdp: bool = False

    @cached_property
    def task(self) -> Task:
        """The task, without the options of variants."""
        return make_task(self.config.task, self.config.task_options)

    @cached_property
    def batch(self) -> tuple[Tensor, ...]:
        """The examples on which the conditioning is measured."""
        return self.task.example_batch()

    def __reduce__(self) -> tuple[type[TaskRun], tuple[TrainConfig, bool]]:
        """Without task and batch: another process reads the data itself."""
        return type(self), (self.config, self.fsdp)

    def __call__(self, prepare: Prepare, seed: int, learning_rate: float) -> RunMetrics:
        """Start or continue the run in ``prepare.folder``.

        Raises:
            ValueError: there is no folder, or it holds another run.
        """
        if prepare.folder is None:
            raise ValueError("prepare.folder must be the run's folder: the run of a recipe writes its files there")
        with one_thread():
            return self._train(prepare, seed, learning_rate, RunFolder(prepare.folder))

    def _train(self, prepare: Prepare, seed: int, learning_rate: float, folder: RunFolder) -> RunMetrics:
        config = self._configure(prepare, seed, learning_rate)
        at_initialization = self._measure_initialization(config, prepare)
        try:
            result = train(_as_begun(config, folder), folder.path, resume=True, progress=False, fsdp=self.fsdp)
        except NonFiniteError as error:
            # The message names a checkpoint in the folder; the cause is the error itself.
            raise error.__cause__ or error from None
        if int(os.environ.get("RANK") or 0):  # of torchrun's processes the main one has the whole model, and reports
            return self._metrics(result, at_initialization, [])
        metrics = self._metrics(result, at_initialization, measure_conditioning(result.model, self.batch))
        shutil.rmtree(folder.checkpoints, ignore_errors=True)  # dozens of runs of them fill a disk
        return metrics

    def _configure(self, prepare: Prepare, seed: int, learning_rate: float) -> TrainConfig:
        config = self.config
        return dataclasses.replace(
            config,
            task_options={**config.task_options, **prepare.options},
            seed=seed,
            learning_rate=learning_rate,
            precondition=prepare.arm,
            checkpoint_every=config.checkpoint_every or max(1, config.steps // CHECKPOINTS),
            monitor=config.monitor or MonitorConfig(every=max(1, config.steps // MONITORED_STEPS)),
        )

    def _measure_initialization(self, config: TrainConfig, prepare: Prepare) -> list[dict[str, Any]]:
        """The conditioning of the model that `train` starts from, built a second time as it is built there."""
        seed_all(derive_seed(config.seed, Stream.MODEL))
        model = prepare(make_task(config.task, config.task_options).build_model())
        return measure_conditioning(model, self.batch)

    def _metrics(self, result: TrainResult, first: list[dict[str, Any]], last: list[dict[str, Any]]) -> RunMetrics:
        moments = (("initialization", first), ("end", last))
        return RunMetrics(
            validation=result.validation[self.task.metric],
            test=result.test[self.task.metric],
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


def task_run(config: TrainConfig, *, fsdp: bool = False) -> TaskRun:
    """A ``run`` for :func:`compare` that trains the task of ``config``, with its data read.

    Args:
        config: the training; seed, learning rate and arm come from the comparison.
        fsdp: divide each run's parameters among the processes of torchrun.

    Raises:
        ValueError, TypeError, OSError: an option of the task is invalid, or its data cannot be read.
    """
    run = TaskRun(config, fsdp)
    _ = run.batch
    return run


def _as_begun(config: TrainConfig, folder: RunFolder) -> TrainConfig:
    """``config``, with what changes no number as the run has it that was begun in the folder."""
    if not folder.config.exists():
        return config
    begun = folder.read_config()
    return dataclasses.replace(config, **{name: getattr(begun, name) for name in CHANGING_NO_NUMBER})


def _reported(row: dict[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in ("step", *CONDITIONING_KEYS)}


def task_settings(config: TrainConfig) -> dict[str, Any]:
    """The options of ``config``, and the task's data, that determine the results, as plain values."""
    return plain_settings(config, make_task(config.task, config.task_options).describe_data())


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
