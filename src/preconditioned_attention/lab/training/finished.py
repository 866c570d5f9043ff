"""The result of a finished run, from its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..._extras import require
from ..tasks import Task
from .checkpoint import complete_checkpoints
from .conditioning import read_conditioning, summarize_records
from .config import TrainConfig
from .folder import RunFolder
from .initial_state import HashedPrepare
from .metrics import check_finite, read_metrics
from .randomness import Stream, derive_seed, seed_all
from .result import TrainResult
from .resuming import evaluated_steps

if TYPE_CHECKING:
    from accelerate import Accelerator

DICTIONARIES = ("validation", "test", "config", "environment")


def read_result(path: Path) -> dict[str, Any]:
    """The content of a run's ``result.json``.

    Raises:
        ValueError: it is not what :meth:`TrainResult.to_json` wrote. OSError: it cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
        _check(content)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is one too
        raise ValueError(f"{path} is not the result of a run: {error}; replace the run (--overwrite)") from error
    return content


def load_weights(model: nn.Module, path: Path) -> None:
    """Load the weights of a finished run into its model.

    Raises:
        OSError: the file cannot be read, or holds the weights of another model.
    """
    try:
        require("safetensors.torch", extra="train").load_model(model, str(path))
    except Exception as error:  # safetensors raises errors of its own
        raise OSError(
            f"{path} cannot be read as the weights of the run: {' '.join(str(error).split())}; replace the run "
            "(--overwrite)"
        ) from error


def is_finished(folder: RunFolder) -> bool:
    """Whether the folder holds the result and the weights of a run whose checkpoints were removed.

    With a checkpoint the result is computed again, which is a check of it.
    """
    return folder.result.exists() and folder.weights.exists() and not complete_checkpoints(folder.checkpoints)


def read_finished(
    config: TrainConfig, task: Task, folder: RunFolder, accelerator: Accelerator, initial: HashedPrepare
) -> TrainResult:
    """The result of a finished run of ``config``, without training or evaluating.

    Raises:
        ValueError, OSError: a file is missing, cannot be read, or is not that of the run.
    """
    content = read_result(folder.result)
    records = read_metrics(folder.metrics, last_step=config.steps, evaluated=evaluated_steps(config))
    seed_all(derive_seed(config.seed, Stream.MODEL))
    model = initial(task.build_model()).to(accelerator.device, torch.float64 if config.precision == "float64" else None)
    load_weights(model, folder.weights)
    names = ("step", "validation", "test", "evaluations", "seconds_per_step", "environment")
    return TrainResult(
        **{name: content[name] for name in names},
        losses=[record["loss"] for record in records if record["kind"] == "step"],
        conditioning=summarize_records(read_conditioning(folder.conditioning, config, model, last_step=config.steps)),
        model=model.eval(),
        config=config,
        pictures=task.pictures(model) if accelerator.is_main_process else {},
        samples=content.get("samples", {}),
        data=content.get("data", {}),
        initial_weights=initial.weights,
        random_state=initial.random_state,
    )


def _check(content: object) -> None:
    if not isinstance(content, dict):
        raise ValueError(f"an object was expected; got {type(content).__name__}")
    for name in DICTIONARIES:
        if not isinstance(content.get(name), dict):
            raise ValueError(f"{name!r} must be an object; got {content.get(name)!r}")
    if type(content.get("step")) is not int or content["step"] < 1:
        raise ValueError(f"'step' must be a whole number from 1; got {content.get('step')!r}")
    check_finite("seconds_per_step", content.get("seconds_per_step"))
    evaluations = content.get("evaluations")
    if not isinstance(evaluations, list) or not all(isinstance(entry, dict) for entry in evaluations):
        raise ValueError(f"'evaluations' must be a list of objects; got {evaluations!r}")
    for metrics in (content["validation"], content["test"], *evaluations):
        for name, value in metrics.items():
            check_finite(name, value)
    for name in ("data", "samples"):
        if not isinstance(content.get(name, {}), dict):
            raise ValueError(f"{name!r} must be an object; got {content[name]!r}")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it holds {name}, which is not a number of JSON")
