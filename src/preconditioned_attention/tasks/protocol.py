"""What the training loop asks of an application."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from torch.utils.data import Dataset

Batch = Any
"""What :func:`torch.utils.data.default_collate` makes of examples: tensors in lists, tuples or dictionaries."""


@dataclass(frozen=True)
class Splits:
    """Three map-style datasets (``__len__`` and ``__getitem__``) of tensors."""

    train: Dataset[Any]
    validation: Dataset[Any]
    test: Dataset[Any]


class Task(Protocol):
    """Data, model, loss and metric of one application."""

    @property
    def name(self) -> str:
        """What it is called in configurations."""

    @property
    def metric(self) -> str:
        """The key of the main metric in what :meth:`evaluate` returns, such as ``"accuracy"``."""

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger metric is a better one."""

    def build_model(self) -> nn.Module:
        """A new model with weights drawn from torch's global generator."""

    def datasets(self) -> Splits:
        """The three splits; the same on every call and in every process."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss over the batch, a scalar with a gradient."""

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Values per example, each of shape ``(B,)``: ``"loss"`` and the metric at least. The loop averages them."""

    def example_batch(self, size: int = 32) -> tuple[Tensor, ...]:
        """The model's arguments, ``model(*batch)``, for the first ``size`` validation examples: to look at layers."""
