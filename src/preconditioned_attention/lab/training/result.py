"""``TrainResult``: the numbers and the model of a finished run."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from ..._files import write_atomically
from ..reporting import Picture
from .config import TrainConfig
from .errors import WriteError


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """The numbers and the model of a finished run.

    Attributes:
        step: the number of steps of the tested weights: all, unless ``config.keep_best`` is set.
        validation: loss and metric of these weights on the validation split.
        test: the same on the test split.
        losses: the training loss of every optimizer step, resumed parts included.
        evaluations: the validation metrics during training: ``step`` (steps taken so far), ``loss``, the metric.
        conditioning: the monitor's records: per recorded ``step`` and ``layer``, the medians that
            ``ConditionMonitor.summary()`` gives; empty without ``config.monitor``.
        seconds_per_step: the median over all steps; evaluations and checkpoints are not counted.
        model: the model that was tested (the averaged one if ``config.ema_decay`` is set), in evaluation mode.
            Of a sharded run: an ordinary model on the CPU of the main process, the sharded one on the others.
        config: the run's configuration.
        environment: versions, hardware, date.
        pictures: the task's, by name; may be empty.
        samples: texts of the model, by prompt; may be empty.
        data: the task's description of its data; may be empty.
        initial_weights: SHA-256 of the model before it was converted. Runs of one seed can be compared only if they
            have the same.
        random_state: SHA-256 of the random state after the conversion, before the first step; likewise.
    """

    step: int
    validation: dict[str, float]
    test: dict[str, float]
    losses: list[float]
    evaluations: list[dict[str, Any]]
    conditioning: list[dict[str, Any]]
    seconds_per_step: float
    model: nn.Module
    config: TrainConfig
    environment: dict[str, Any]
    pictures: dict[str, Picture] = field(default_factory=dict)
    samples: dict[str, str] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    initial_weights: str = ""
    random_state: str = ""

    def to_json(self) -> str:
        """Everything but weights, pictures, the loss of every step and the conditioning, which have their own files."""
        content = {
            "step": self.step,
            "validation": self.validation,
            "test": self.test,
            "evaluations": self.evaluations,
            "seconds_per_step": self.seconds_per_step,
            "initial_weights": self.initial_weights,
            "random_state": self.random_state,
            "config": self.config.to_dict(),
            "environment": self.environment,
            **{name: value for name, value in (("data", self.data), ("samples", self.samples)) if value},
        }
        return json.dumps(content, indent=2, allow_nan=False) + "\n"


def write_result(result: TrainResult, path: Path) -> None:
    """Write ``result.json``.

    Raises:
        WriteError: it cannot be written. ValueError: a value is not finite.
    """
    try:
        write_atomically(path, result.to_json())
    except OSError as error:
        raise WriteError(f"{path} could not be written: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path} cannot hold the result: {error}") from error
