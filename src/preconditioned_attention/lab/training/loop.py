"""``train``, the loop of one training run."""

from __future__ import annotations

import dataclasses
import statistics
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from ..._environment import describe_environment
from ..._extras import require
from ...conversion import is_preconditioned
from ..tasks import Splits, make_task
from .best import better
from .checkpoint import save_checkpoint, save_weights
from .claim import claimed
from .conditioning import ConditioningLog
from .config import TrainConfig
from .errors import NonFiniteError, WriteError
from .evaluation import evaluate, is_finite
from .examples import load_batches
from .finished import is_finished, read_finished
from .folder import RunFolder
from .initial_state import HashedPrepare, preserve_random_state
from .metrics import MetricsLog
from .order import BatchOrder
from .processes import make_accelerator, on_main, raise_on_all_ranks
from .progress import ProgressLine
from .report import write_report
from .result import TrainResult, write_result
from .resuming import evaluation_is_due, is_due, resume_state
from .sharding import process_group
from .state import Prepare, TrainState, build_state
from .step import optimizer_step

if TYPE_CHECKING:
    from accelerate import Accelerator


def train(
    config: TrainConfig,
    output: Path | str,
    *,
    resume: bool = False,
    overwrite: bool = False,
    prepare: Prepare | None = None,
    progress: bool = True,
    fsdp: bool = False,
) -> TrainResult:
    """Train a task's model and evaluate it on the validation and the test split.

    Call it from one process, or from each of several (``torchrun``, ``accelerate launch``); ``config.batch_size`` is
    the batch of all of them together. A run that was killed and is resumed ends, on the CPU, with the weights, bit for
    bit, of one that was not.

    Args:
        config: the run.
        output: the folder for its configuration, metrics, checkpoints, weights and result.
        resume: continue the run in ``output`` from its newest complete checkpoint, or start it if there is none; of a
            finished run, return the result.
        overwrite: replace the run in ``output``.
        prepare: called once with the new model before the optimizer exists; returns the model. The default applies
            ``config.precondition``.
        progress: show a live line on standard error.
        fsdp: divide parameters, gradients and optimizer state among the processes (FSDP2), on GPUs or CPUs. It changes
            no number but by rounding, so it is no part of ``config``: a run may be resumed with or without. On GPUs
            Accelerate's own configuration of FSDP2 (``accelerate launch``) does the same.

    Raises:
        ValueError, TypeError: an argument, an option of the task or the state of the folder does not allow the run.
        OSError: the folder cannot be written to.
        NonFiniteError: the loss or its gradient is not finite; the last good state is saved as a checkpoint.
        WriteError: a file could not be written, as on a full disk; complete files are intact.
        ImportError: an extra is missing.
    """
    if resume and overwrite:
        raise ValueError("resume and overwrite exclude each other; give one of them")
    if prepare is not None and config.precondition is not None:
        raise ValueError("prepare replaces config.precondition; give one of them (dataclasses.replace sets None)")
    require("accelerate", extra="train")
    task = make_task(config.task, config.task_options)
    folder = RunFolder(Path(output))
    initial = HashedPrepare(prepare or partial(_precondition, config=config))
    accelerator = make_accelerator(config, folder.path)
    alone = fsdp and accelerator.num_processes == 1
    with process_group(alone=alone), claimed(folder, accelerator) as claim:
        with raise_on_all_ranks(accelerator):
            if accelerator.is_main_process:
                folder.check(config, resume=resume, overwrite=overwrite)
        if resume and on_main(accelerator, lambda: is_finished(folder)):
            with raise_on_all_ranks(accelerator):
                return read_finished(config, task, folder, accelerator, initial)
        splits = task.datasets()
        order = _batch_order(config, accelerator, splits)
        state = build_state(config, task, accelerator, initial, fsdp=fsdp)
        _warn_of_plain_weights(state)
        enabled = progress and accelerator.is_main_process
        progress_line = ProgressLine(task.name, total=config.steps, batch_size_at=order.batch_size_at, enabled=enabled)
        with ConditioningLog(state, folder.conditioning) as conditioning, progress_line as line:
            log = _begin(state, folder, line, resume=resume)
            try:
                conditioning.begin()
                _run(state, splits, order, folder, log, conditioning, line, claim)
                conditioning.close()
                return _finish(state, splits, folder, log, conditioning, initial, claim)
            except NonFiniteError as error:
                raise NonFiniteError(f"{error}. {_save_last(state, folder, log, conditioning)}") from error
            finally:
                log.close()
                for tracker in accelerator.trackers:
                    tracker.finish()
                accelerator.free_memory()


def _precondition(model: nn.Module, *, config: TrainConfig) -> nn.Module:
    if config.precondition is not None:
        with preserve_random_state():  # so that it is that of the plain arm
            config.precondition.apply(model)
    return model


def _warn_of_plain_weights(state: TrainState) -> None:
    """Warn if pretrained weights, which were loaded before the conversion and have no mark, are preconditioned."""
    task = state.task
    if task.pretrained and is_preconditioned(state.unwrapped):
        warnings.warn(
            f"task {task.name!r} starts from pretrained weights and its attention is preconditioned: weights that were "
            "trained without preconditioning fit another function, because C changes the scale of every head's output. "
            "Pretrain with preconditioning, or treat it as fine-tuning and compare with care",
            stacklevel=3,
        )


def _batch_order(config: TrainConfig, accelerator: Accelerator, splits: Splits) -> BatchOrder:
    return BatchOrder(
        size=len(splits.train),  # type: ignore[arg-type]
        batch_size=config.batch_size,
        seed=config.seed,
        processes=accelerator.num_processes,
        process=accelerator.process_index,
        accumulation_steps=config.accumulation_steps,
        repeats=splits.repeats,
        shuffle=splits.shuffle,
        ramp_steps=config.batch_ramp_steps,
    )


def _begin(state: TrainState, folder: RunFolder, line: ProgressLine, *, resume: bool) -> MetricsLog:
    """Start the run's files, or restore the state and cut the files to the newest complete checkpoint."""
    accelerator = state.accelerator
    records = resume_state(state, folder) if resume else []
    if resume:
        line.note(f"resuming {folder.path} after step {state.step}")
    with raise_on_all_ranks(accelerator):
        if accelerator.is_main_process and not state.step:
            folder.begin(state.config)
        log = MetricsLog(folder.metrics, records, write=accelerator.is_main_process)
    accelerator.init_trackers(folder.tensorboard.name, init_kwargs={"tensorboard": {"purge_step": state.step + 1}})
    return log


def _run(
    state: TrainState,
    splits: Splits,
    order: BatchOrder,
    folder: RunFolder,
    log: MetricsLog,
    conditioning: ConditioningLog,
    line: ProgressLine,
    claim: Callable[[], None],
) -> None:
    """Take the remaining steps, after the evaluation that a stopped run did not finish."""
    config = state.config
    order = dataclasses.replace(order, first_step=state.step)
    batches = load_batches(splits.train, order, collate=splits.collate, workers=config.workers)
    state.model.train()
    if state.step and evaluation_is_due(config, state.step) and not log.has_evaluation(state.step):
        _evaluate(state, splits, log)
    while state.step < config.steps:
        claim()
        with conditioning.step():
            record = optimizer_step(state, batches)
        log.add("step", record)
        state.accelerator.log({f"train/{name}": record[name] for name in record if name != "step"}, state.step)
        line.step(record)
        if evaluation_is_due(config, state.step):
            _evaluate(state, splits, log)
        if is_due(config, config.checkpoint_every, state.step):
            _save(state, folder, log, conditioning)


def _finish(
    state: TrainState,
    splits: Splits,
    folder: RunFolder,
    log: MetricsLog,
    conditioning: ConditioningLog,
    initial: HashedPrepare,
    claim: Callable[[], None],
) -> TrainResult:
    """Evaluate on the test split and write the result."""
    if state.best is not None:
        state.evaluated.load_state_dict(state.best.weights)
    tested = state.step if state.best is None else state.best.step
    test = _finite(state, evaluate(state, splits.test, split="test", collate=splits.collate), "test")
    evaluations, steps = log.of_kind("evaluation"), log.of_kind("step")
    (validation,) = (record for record in evaluations if record["step"] == tested)
    result = TrainResult(
        step=tested,
        validation={name: value for name, value in validation.items() if name != "step"},
        test=test,
        losses=[record["loss"] for record in steps],
        evaluations=evaluations,
        conditioning=conditioning.history,
        seconds_per_step=statistics.median(record["seconds"] for record in steps),
        model=state.final_model(),
        config=state.config,
        environment=describe_environment(),
        data=state.task.describe_data(),
        initial_weights=initial.weights,
        random_state=initial.random_state,
    )
    with raise_on_all_ranks(state.accelerator):
        if state.accelerator.is_main_process:
            claim()
            save_weights(result.model, folder.weights)
            result.pictures.update(state.task.pictures(result.model))
            result.samples.update(state.task.samples(result.model))
            write_report(result, folder)
            write_result(result, folder.result)
    return result


def _evaluate(state: TrainState, splits: Splits, log: MetricsLog) -> None:
    metrics = evaluate(state, splits.validation, split="validation", collate=splits.collate)
    metrics = _finite(state, metrics, "validation")
    log.add("evaluation", {"step": state.step, **metrics})
    if state.config.keep_best:
        metric, higher = metrics[state.task.metric], state.task.higher_is_better
        state.best = better(state.best, state.evaluated, step=state.step, metric=metric, higher=higher)
    state.accelerator.log({f"validation/{name}": value for name, value in metrics.items()}, state.step)


def _finite(state: TrainState, metrics: dict[str, float], split: str) -> dict[str, float]:
    """The metrics as Python's floats.

    Raises:
        NonFiniteError: one of them is infinite or not a number.
    """
    metrics = {name: float(value) for name, value in metrics.items()}
    if not is_finite(metrics):
        raise NonFiniteError(f"step {state.step}: {split} metrics {metrics}. Try a lower learning rate")
    return metrics


def _save(state: TrainState, folder: RunFolder, log: MetricsLog, conditioning: ConditioningLog) -> Path:
    log.synchronize()  # so that the files have every step of a checkpoint
    conditioning.synchronize()
    return save_checkpoint(state, folder.checkpoints)


def _save_last(state: TrainState, folder: RunFolder, log: MetricsLog, conditioning: ConditioningLog) -> str:
    try:
        return f"The state after step {state.step} is saved in {_save(state, folder, log, conditioning)}"
    except WriteError as error:
        return f"The state after step {state.step} could not be saved: {error}"
