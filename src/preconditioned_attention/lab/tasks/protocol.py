"""What the training loop asks of an application."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Dataset, default_collate

from ..reporting import Picture

Batch = Any
"""What ``Splits.collate`` makes of examples: tensors in lists, tuples or dictionaries."""


@dataclass(frozen=True)
class Splits:
    """Three map-style datasets (``__len__`` and ``__getitem__``), and what makes a batch of a list of examples.

    ``repeats`` is how often each training example of an epoch comes in a row; the epoch keeps its length. ``shuffle``
    is False where the order of the training split is part of the data, as in a curriculum.

    The training split may draw random numbers for its augmentations, from the global generators of Python, numpy and
    torch: the loop seeds them. The other two must not.
    """

    train: Dataset[Any]
    validation: Dataset[Any]
    test: Dataset[Any]
    collate: Callable[[list[Any]], Batch] = default_collate
    repeats: int = 1
    shuffle: bool = True


@dataclass(frozen=True, kw_only=True)
class OptimizationSettings:
    """What a run's configuration says about its optimizer and its learning rate; see ``TrainConfig``."""

    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    betas: tuple[float, float]
    warmup_steps: int
    final_learning_rate: float


class Task(Protocol):
    """Data, model, loss and metric of one application."""

    @property
    def name(self) -> str:
        """What it is called in configurations."""

    @property
    def metric(self) -> str:
        """The key of the main metric in what :meth:`evaluate` or :meth:`Scored.score` returns, such as "accuracy"."""

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger metric is a better one."""

    def build_model(self) -> nn.Module:
        """A new model with weights drawn from torch's global generator."""

    def datasets(self) -> Splits:
        """The three splits; the same on every call and in every process."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss over the batch, a scalar with a gradient."""

    def evaluate(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor | list[Any]]:
        """Values per example: tensors of shape ``(B,)``, which the loop averages over the split, such as the metric.

        Lists of length ``B`` are not averaged: they go to :meth:`Scored.score`, which such a task must have.
        """

    def example_batch(self, size: int = 32) -> tuple[Tensor, ...]:
        """The model's arguments, ``model(*batch)``, for the first ``size`` validation examples: to look at layers."""


@runtime_checkable
class Scored(Protocol):
    """What a task has besides if a metric belongs to a whole split and is no mean over its examples."""

    def score(self, dataset: Dataset[Any], values: Mapping[str, list[Any]]) -> dict[str, float]:
        """Metrics of a split. ``values`` holds the lists of :meth:`Task.evaluate`, joined in the dataset's order."""


@runtime_checkable
class Optimized(Protocol):
    """What a task has besides if its field has optimizers and schedules of its own; others get AdamW and a cosine."""

    def make_optimizer(self, model: nn.Module, settings: OptimizationSettings) -> Optimizer:
        """The optimizer of the model's parameters."""

    def make_schedule(self, settings: OptimizationSettings) -> Callable[[int], float]:
        """From the step, counted from 0, to its learning rate over ``settings.learning_rate``."""


@runtime_checkable
class Baselined(Protocol):
    """What a task has besides if there are predictors without a model that its scores should be seen beside."""

    def baselines(self) -> dict[str, float]:
        """The main metric of each on the test split, by name."""


@runtime_checkable
class Illustrated(Protocol):
    """What a task has besides if it can show what a model does."""

    def pictures(self, model: nn.Module) -> dict[str, Picture]:
        """Pictures by name for the report of a run; the same examples for every model."""


@runtime_checkable
class Quoted(Protocol):
    """What a task has besides if its model writes text."""

    def samples(self, model: nn.Module) -> dict[str, str]:
        """What the model wrote, by what it was given; drawn from a fixed seed, and no random state moves."""


@runtime_checkable
class Described(Protocol):
    """What a task has besides if its data is not the same on every machine."""

    def describe_data(self) -> dict[str, Any]:
        """What the data is: where from, how much, and hashes; as values that JSON can hold."""


@runtime_checkable
class Exported(Protocol):
    """What a task has besides if other libraries can read its model."""

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write the model, and what belongs to it, into a folder of its own."""


@runtime_checkable
class Pretrained(Protocol):
    """What a task has besides if its model may start from weights that others trained."""

    @property
    def pretrained(self) -> bool | str:
        """Whether it does; or where the weights are."""
