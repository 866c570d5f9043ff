"""``train``, the loop of one training run."""

from __future__ import annotations

import dataclasses
import statistics
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from torch import nn

from ..._environment import describe_machine
from ..._extras import require
from ...conversion import is_preconditioned
from ..tasks import Splits, make_task
from .best import better
from .checkpoint import save_checkpoint, save_weights
from .claim import claimed
from .conditioning import ConditioningLog
from .config import TrainConfig
from .errors import Interrupted, NonFiniteError, WriteError
from .evaluation import evaluate, is_finite
from .examples import load_batches
from .finished import is_finished, read_finished
from .folder import RunFolder
from .initial_state import HashedPrepare, preserve_random_state
from .interruption import StopCheck, StopRequested, StopSignals, stoppable
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
from .tracking import track, tracking

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
        Interrupted: a signal, Ctrl-C or SIGTERM, stopped the run; its state is saved as a checkpoint.
        ClaimedError, ClaimLostError: another process writes the folder, or has taken it over.
    """
    if resume and overwrite:
        raise ValueError("resume and overwrite exclude each other; give one of them")
    if prepare is not None and config.precondition is not None:
        raise ValueError("prepare replaces config.precondition; give one of them (dataclasses.replace sets None)")
    require("accelerate", extra="train")
    task = make_task(config.task, config.task_options)
    folder = RunFolder(Path(output))
    initial = HashedPrepare(prepare or partial(_precondition, config=config))
    with StopSignals() as signals:
        accelerator = make_accelerator(config, folder.path)
        alone = fsdp and accelerator.num_processes == 1
        with process_group(alone=alone), claimed(folder, accelerator) as claim:
            check = StopCheck(signals, accelerator, claim)
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
            signals.defer()
            enabled = progress and accelerator.is_main_process
            line = ProgressLine(task.name, total=config.steps, batch_size_at=order.batch_size_at, enabled=enabled)
            with ConditioningLog(state, folder.conditioning) as conditioning, line:
                log = _begin(state, folder, conditioning, line, resume=resume)
                run = _Run(state, splits, folder, log, conditioning, line, claim, check)
                return _complete(run, order, initial)


@dataclass(frozen=True)
class _Run:
    """What the parts of the loop share. ``check`` raises if the run must stop, ``claim`` if it was taken over."""

    state: TrainState
    splits: Splits
    folder: RunFolder
    log: MetricsLog
    conditioning: ConditioningLog
    line: ProgressLine
    claim: Callable[[], None]
    check: StopCheck


def _complete(run: _Run, order: BatchOrder, initial: HashedPrepare) -> TrainResult:
    """Take the remaining steps and finish the run, or save its state if it must stop."""
    state = run.state
    try:
        run.conditioning.begin()
        with tracking(state.accelerator, run.folder.tensorboard, first_step=state.step + 1):
            _take_steps(run, order)
            run.conditioning.close()
            return _finish(run, initial)
    except NonFiniteError as error:
        raise NonFiniteError(f"{error}. {_save_last(run)}") from error
    except StopRequested as stop:
        stopped = f"{stop.name} after step {state.step} of {state.config.steps}"
        raise Interrupted(f"{stopped}. {_save_last(run)}", stop.number) from None
    finally:
        run.log.close()
        state.accelerator.free_memory()


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


def _begin(
    state: TrainState, folder: RunFolder, conditioning: ConditioningLog, line: ProgressLine, *, resume: bool
) -> MetricsLog:
    """Start the run's files, or restore the state and cut the files to the newest complete checkpoint."""
    accelerator = state.accelerator
    records = resume_state(state, folder) if resume else []
    conditioning.read()
    if resume:
        line.note(f"resuming {folder.path} after step {state.step}")
    with raise_on_all_ranks(accelerator):
        if accelerator.is_main_process and not state.step:
            folder.begin(state.config)
        return MetricsLog(folder.metrics, records, write=accelerator.is_main_process)


def _take_steps(run: _Run, order: BatchOrder) -> None:
    """Take the remaining steps, after the evaluation that a stopped run did not finish."""
    state, config = run.state, run.state.config
    order = dataclasses.replace(order, first_step=state.step)
    batches = load_batches(run.splits.train, order, collate=run.splits.collate, workers=config.workers)
    batches = stoppable(batches, run.check)
    state.model.train()
    if state.step and evaluation_is_due(config, state.step) and not run.log.has_evaluation(state.step):
        _evaluate(run)
    while state.step < config.steps:
        with run.conditioning.step():
            record = optimizer_step(state, batches)
        run.log.add("step", record)
        track(state.accelerator, {f"train/{name}": record[name] for name in record if name != "step"}, state.step)
        run.line.step(record)
        if evaluation_is_due(config, state.step):
            _evaluate(run)
        if is_due(config, config.checkpoint_every, state.step):
            _save(run)


def _finish(run: _Run, initial: HashedPrepare) -> TrainResult:
    """Evaluate on the test split and write the result."""
    state, folder = run.state, run.folder
    if state.best is not None:
        state.evaluated.load_state_dict(state.best.weights)
    tested = state.step if state.best is None else state.best.step
    test = _finite_metrics(run, "test")
    evaluations, steps = run.log.of_kind("evaluation"), run.log.of_kind("step")
    (validation,) = (record for record in evaluations if record["step"] == tested)
    result = TrainResult(
        step=tested,
        validation={name: value for name, value in validation.items() if name != "step"},
        test=test,
        losses=[record["loss"] for record in steps],
        evaluations=evaluations,
        conditioning=run.conditioning.history,
        seconds_per_step=statistics.median(record["seconds"] for record in steps),
        model=state.final_model(),
        config=state.config,
        environment=describe_machine(),
        data=state.task.describe_data(),
        initial_weights=initial.weights,
        random_state=initial.random_state,
    )
    with raise_on_all_ranks(state.accelerator):
        if state.accelerator.is_main_process:
            run.claim()
            save_weights(result.model, folder.weights)
            result.pictures.update(state.task.pictures(result.model))
            result.samples.update(state.task.samples(result.model))
            write_report(result, folder)
            write_result(result, folder.result)
    return result


def _evaluate(run: _Run) -> None:
    state = run.state
    metrics = _finite_metrics(run, "validation")
    run.log.add("evaluation", {"step": state.step, **metrics})
    if state.config.keep_best:
        metric, higher = metrics[state.task.metric], state.task.higher_is_better
        state.best = better(state.best, state.evaluated, step=state.step, metric=metric, higher=higher)
    track(state.accelerator, {f"validation/{name}": value for name, value in metrics.items()}, state.step)


def _finite_metrics(run: _Run, split: Literal["validation", "test"]) -> dict[str, float]:
    """The metrics on a split, as Python's floats.

    Raises:
        NonFiniteError: one of them is infinite or not a number.
    """
    dataset = run.splits.validation if split == "validation" else run.splits.test
    metrics = evaluate(run.state, dataset, split=split, collate=run.splits.collate, check=run.check)
    metrics = {name: float(value) for name, value in metrics.items()}
    if not is_finite(metrics):
        raise NonFiniteError(f"step {run.state.step}: {split} metrics {metrics}. Try a lower learning rate")
    return metrics


def _save(run: _Run) -> Path:
    with raise_on_all_ranks(run.state.accelerator):
        run.claim()
        run.log.synchronize()  # so that the files have every step of a checkpoint
        run.conditioning.synchronize()
    return save_checkpoint(run.state, run.folder.checkpoints)


def _save_last(run: _Run) -> str:
    step = run.state.step
    if not step:
        return "No step was taken, so there is nothing to save"
    try:
        return f"The state after step {step} is saved in {_save(run)}"
    except WriteError as error:
        return f"The state after step {step} could not be saved: {error}"
