"""``Task``, the base class of the applications, and ``Splits``, their data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Dataset, default_collate

from ..reporting import Picture
from .optimizer import OptimizerSettings, make_adamw, make_cosine

Batch = Any
"""What ``Splits.collate`` makes of examples: tensors in lists, tuples or dictionaries."""


@dataclass(frozen=True)
class Splits:
    """Three map-style datasets (``__len__`` and ``__getitem__``), and what makes a batch of a list of examples.

    ``repeats`` is how often each training example of an epoch comes in a row; the epoch keeps its length. ``shuffle``
    is False where the order of the training split is part of the data, as in a curriculum.

    The training split may draw random numbers for its augmentations, from the global generators of Python, numpy and
    torch: the training loop seeds them. The other two must not.
    """

    train: Dataset[Any]
    validation: Dataset[Any]
    test: Dataset[Any]
    collate: Callable[[list[Any]], Batch] = default_collate
    repeats: int = 1
    shuffle: bool = True


class Task(ABC):
    """Data, model, loss and metric of one application; subclass it and add the class to ``TASKS``.

    The abstract methods are required, the others have defaults.

    Attributes:
        name: what it is called in configurations.
        higher_is_better: whether a larger :attr:`metric` is a better one.
        decay_vectors: whether weight decay also applies to biases, norms and gains.
    """

    name: ClassVar[str]
    higher_is_better: ClassVar[bool]
    decay_vectors: ClassVar[bool] = False

    @property
    @abstractmethod
    def metric(self) -> str:
        """The key of the main metric in what :meth:`evaluate` or :meth:`score` returns, such as "accuracy"."""

    @property
    def pretrained(self) -> bool | str:
        """Whether the model starts from pretrained weights, or where these are; False by default."""
        return False

    @abstractmethod
    def build_model(self) -> nn.Module:
        """A new model with weights drawn from torch's global generator."""

    @abstractmethod
    def datasets(self) -> Splits:
        """The three splits; the same on every call and in every process."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The mean loss over the batch, a scalar with a gradient."""

    @abstractmethod
    def evaluate(self, model: nn.Module, batch: Any) -> Mapping[str, Tensor | list[Any]]:
        """Values per example: tensors of shape ``(B,)``, which are averaged over the split, such as the metric.

        Lists of length ``B`` are not averaged: they go to :meth:`score`.
        """

    @abstractmethod
    def example_batch(self, size: int = 32) -> tuple[Tensor, ...]:
        """The model's arguments, ``model(*batch)``, for ``size`` validation examples, always the same ones."""

    def score(self, dataset: Dataset[Any], values: Mapping[str, list[Any]]) -> dict[str, float]:
        """Metrics of a whole split that are no means over its examples.

        Args:
            dataset: the split.
            values: the lists of :meth:`evaluate`, joined in the order of ``dataset``.
        """
        raise ValueError(f"evaluate of task {self.name!r} returns lists, {', '.join(values)}; it must define score")

    def make_optimizer(self, model: nn.Module, settings: OptimizerSettings) -> Optimizer:
        """AdamW; see :func:`preconditioned_attention.lab.tasks.optimizer.make_adamw`."""
        return make_adamw(model, settings, decay_vectors=self.decay_vectors)

    def make_scheduler(self, optimizer: Optimizer, settings: OptimizerSettings) -> LRScheduler:
        """Warm-up and a cosine, or milestones; stepped once per optimizer step.

        A resumed run restores it by ``load_state_dict``.
        """
        return make_cosine(optimizer, settings)

    def baselines(self) -> dict[str, float]:
        """The main metric on the test split of predictors without a model, by name."""
        return {}

    def pictures(self, model: nn.Module) -> dict[str, Picture]:
        """Pictures of what the model does, by name, for the report of a run; the same examples for every model."""
        return {}

    def samples(self, model: nn.Module) -> dict[str, str]:
        """Texts of the model by prompt, sampled with a fixed seed; no random state changes."""
        return {}

    def describe_data(self) -> dict[str, Any]:
        """Where the data is from, how much it is, and hashes, as JSON values, if it differs between machines."""
        return {}

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write the model, and what belongs to it, into a folder of its own that other libraries read.

        Raises:
            ValueError: the task has no such form.
        """
        raise ValueError(
            f"models of task {self.name!r} have no form that other libraries read; their weights are "
            "model.safetensors in the folder of the run"
        )
