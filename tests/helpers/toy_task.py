"""A task that trains in milliseconds, and what tests need to make it go wrong."""

import itertools
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import TensorDataset

from preconditioned_attention.lab.tasks import TASKS, OptimizerSettings, Splits, Task
from preconditioned_attention.lab.training import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
FEATURES, CLASSES = 6, 3


@dataclass(kw_only=True)
class Toy(Task):
    """Which of three random directions is a point nearest to? ``bad_call`` is the training loss that turns NaN."""

    hidden: int = 16
    dropout: float = 0.0
    batch_norm: bool = False
    bad_call: int | None = None
    bad_process: int = 0
    pause: float = 0.0
    scale: float = 1.0

    name = "toy"
    metric = "accuracy"
    higher_is_better = True
    calls: itertools.count = field(default_factory=itertools.count, init=False)

    def build_model(self) -> nn.Module:
        norm = nn.BatchNorm1d(self.hidden) if self.batch_norm else nn.Identity()
        return nn.Sequential(
            nn.Linear(FEATURES, self.hidden),
            norm,
            nn.Tanh(),
            nn.Dropout(self.dropout),
            nn.Linear(self.hidden, CLASSES),
        )

    def datasets(self) -> Splits:
        generator = torch.Generator().manual_seed(3)
        directions = torch.randn(FEATURES, CLASSES, generator=generator)
        parts = []
        for size in (50, 13, 17):
            points = torch.randn(size, FEATURES, generator=generator)
            parts.append(TensorDataset(points, (points @ directions).argmax(dim=1)))
        return Splits(*parts)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        points, labels = batch
        time.sleep(self.pause)
        loss = self.scale * F.cross_entropy(model(points), labels)
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        return loss * float("nan") if next(self.calls) == self.bad_call and rank == self.bad_process else loss

    def evaluate(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        points, labels = batch
        logits = model(points)
        return {
            "loss": F.cross_entropy(logits, labels, reduction="none"),
            "accuracy": (logits.argmax(dim=1) == labels).float(),
        }

    def example_batch(self, size: int = 32) -> tuple[Tensor]:
        return (self.datasets().validation.tensors[0][:size],)


class RankedToy(Toy):
    """Its metric belongs to the split as a whole, and depends on the order of the examples."""

    name = "ranked-toy"
    metric = "late_accuracy"

    def evaluate(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Any]:
        values = super().evaluate(model, batch)
        return {"loss": values["loss"], "hits": values["accuracy"].tolist(), "labels": batch[1].tolist()}

    def score(self, dataset: TensorDataset, values: dict[str, list[float]]) -> dict[str, float]:
        assert values["labels"] == dataset.tensors[1].tolist()
        weights = range(1, len(dataset) + 1)
        hits = sum(weight * hit for weight, hit in zip(weights, values["hits"], strict=True))
        return {"late_accuracy": hits / sum(weights)}


class FactoredSGD(torch.optim.SGD):
    """Divides gradients by means over their rows and columns, as Adafactor, and keeps these."""

    def step(self, closure: None = None) -> None:
        for parameter in self.param_groups[0]["params"]:
            state, gradient = self.state[parameter], parameter.grad
            for name, axis in (("rows", -1), ("columns", 0)):
                mean = gradient.abs().mean(dim=axis, keepdim=True)
                state[name] = 0.5 * (state[name] + mean) if name in state else mean
                gradient = gradient / (state[name] + 0.01)
            divided = isinstance(parameter, DTensor)
            parameter.grad = gradient.redistribute(placements=parameter.placements) if divided else gradient
        super().step()


class FactoredToy(Toy):
    """Its optimizer keeps states that have not the shape of the parameter."""

    name = "factored-toy"

    def make_optimizer(self, model: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
        return FactoredSGD(model.parameters(), lr=0.1 * settings.learning_rate)


TASKS["toy"] = Toy
TASKS["ranked-toy"] = RankedToy
TASKS["factored-toy"] = FactoredToy


def toy_config(**changes: object) -> TrainConfig:
    options = {"task": "toy", "steps": 12, "batch_size": 10, "learning_rate": 0.01, **changes}
    return TrainConfig.from_dict(options)
