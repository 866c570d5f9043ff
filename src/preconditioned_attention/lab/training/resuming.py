"""What a resumed run goes on from: its newest complete checkpoint, and the records up to there."""

from __future__ import annotations

from pathlib import Path

from .checkpoint import complete_checkpoints, load_checkpoint
from .config import TrainConfig
from .folder import RunFolder
from .metrics import Record, read_metrics
from .processes import raise_on_all_ranks
from .state import TrainState

Evaluated = tuple[int, float]
"""A step and the metric on the validation split after it."""


def is_due(config: TrainConfig, interval: int | None, step: int) -> bool:
    """Whether what is done every ``interval`` steps, and after the last one, is done after ``step``."""
    return step == config.steps or (interval is not None and step % interval == 0)


def evaluation_is_due(config: TrainConfig, step: int) -> bool:
    """Whether the model is evaluated after ``step``."""
    return is_due(config, config.evaluate_every, step)


def evaluated_steps(config: TrainConfig) -> list[int]:
    """The steps after which the model is evaluated."""
    every = config.evaluate_every
    return [*(range(every, config.steps, every) if every is not None else ()), config.steps]


def resume_state(state: TrainState, folder: RunFolder) -> list[Record]:
    """Restore ``state`` from the newest complete checkpoint; the records up to its step.

    Without a checkpoint the state stays as it is, and there are no records: the run starts.

    Raises:
        ValueError: the records do not belong to the checkpoint, or the folder is the rest of a finished run.
        OSError: a file cannot be read.
    """
    with raise_on_all_ranks(state.accelerator):
        checkpoints = complete_checkpoints(folder.checkpoints)
        path = _newest(checkpoints, state.config, folder)
    if path is None:
        return []
    load_checkpoint(state, path)
    with raise_on_all_ranks(state.accelerator):
        records = read_metrics(folder.metrics, last_step=state.step, evaluated=evaluated_steps(state.config))
        _check_metric(state, folder, records)
        return _without_unsaved_evaluation(state, path, records) if state.config.keep_best else records


def _newest(checkpoints: dict[int, Path], config: TrainConfig, folder: RunFolder) -> Path | None:
    if not checkpoints:
        if folder.result.exists():
            raise ValueError(
                f"{folder.path} has the result of a finished run, {folder.result.name}, but neither its weights, "
                f"{folder.weights.name}, nor a checkpoint, so there is nothing to resume; replace it (--overwrite), or "
                "choose another folder"
            )
        return None
    step = max(checkpoints)
    if step > config.steps:
        raise ValueError(
            f"checkpoint {checkpoints[step]} must be of one of the {config.steps} steps that the configuration has; "
            "remove it to resume from the one before, or replace the run (--overwrite)"
        )
    return checkpoints[step]


def _check_metric(state: TrainState, folder: RunFolder, records: list[Record]) -> None:
    for record in records:
        if record["kind"] == "evaluation" and state.task.metric not in record:
            raise ValueError(
                f"{folder.metrics} must hold the metric {state.task.metric!r} of every evaluation; that after step "
                f"{record['step']} lacks it"
            )


def _without_unsaved_evaluation(state: TrainState, path: Path, records: list[Record]) -> list[Record]:
    """The records without an evaluation after the last step that the best weights in the checkpoint do not know of.

    A run that is stopped during an evaluation saves its state without it, and the resumed run repeats it.
    """
    saved = None if state.best is None else (state.best.step, state.best.metric)
    if saved == _best(state, records):
        return records
    earlier = [record for record in records if record["kind"] == "step" or record["step"] < state.step]
    if saved != _best(state, earlier):
        raise ValueError(
            f"the best weights in checkpoint {path}, {_describe(saved)}, must be those of the best evaluation in "
            f"metrics.jsonl, {_describe(_best(state, records))}; remove the checkpoint to resume from the one before, "
            "or replace the run (--overwrite)"
        )
    return earlier


def _best(state: TrainState, records: list[Record]) -> Evaluated | None:
    """The best evaluation, of equals the first."""
    metric, sign = state.task.metric, 1 if state.task.higher_is_better else -1
    evaluated = [(record["step"], record[metric]) for record in records if record["kind"] == "evaluation"]
    return max(evaluated, key=lambda entry: sign * entry[1], default=None)


def _describe(evaluated: Evaluated | None) -> str:
    return "none" if evaluated is None else f"those of step {evaluated[0]} with {evaluated[1]!r}"
