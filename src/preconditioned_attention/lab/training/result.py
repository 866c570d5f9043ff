"""What a run gives back."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..reporting import Picture
from .config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """The numbers and the model of a finished run.

    Attributes:
        step: after how many steps the weights that count were reached: all, unless ``config.keep_best`` is set.
        validation: loss and metric of these weights on the validation split.
        test: the same on the test split.
        losses: the training loss of every optimizer step, resumed parts included.
        evaluations: the validation metrics during training: ``step`` (steps taken so far), ``loss``, the metric.
        conditioning: what the monitor saw: per recorded ``step`` and ``layer``, the medians that
            ``ConditionMonitor.summary()`` gives; empty without ``config.monitor``.
        seconds_per_step: the median over all steps; evaluations and checkpoints are not counted.
        model: the model that was tested (the averaged one if ``config.ema_decay`` is set), in evaluation mode.
        config: the run's configuration.
        environment: versions, hardware, date.
        pictures: what the task shows of the model, by name; empty if it shows nothing.
        samples: what the model wrote, by what it was given; empty if it does not write.
        data: what the task says its data is; empty if it says nothing.
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

    def to_json(self) -> str:
        """Everything but weights, pictures, the loss of every step and the conditioning, which have their own files."""
        content = {
            "step": self.step,
            "validation": self.validation,
            "test": self.test,
            "evaluations": self.evaluations,
            "seconds_per_step": self.seconds_per_step,
            "config": self.config.to_dict(),
            "environment": self.environment,
            **{name: value for name, value in (("data", self.data), ("samples", self.samples)) if value},
        }
        return json.dumps(content, indent=2) + "\n"
