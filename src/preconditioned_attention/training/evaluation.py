"""Metrics averaged over a split, every example counted once."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from .randomness import Stream, derive_seed, seed_all
from .state import TrainState


def evaluate(state: TrainState, dataset: Dataset[Any], *, split: str) -> dict[str, float]:
    """The mean of every value that the task's ``evaluate`` gives, over all examples and all processes.

    Each process takes its share of the examples without padding, so the mean is the same for any number of processes
    up to rounding.

    Raises:
        ValueError: the split is empty, or the task returns values that are not one per example, or lacks the loss
            or its metric.
    """
    from accelerate.utils import gather_object

    accelerator, model = state.accelerator, state.evaluated
    size = len(dataset)  # type: ignore[arg-type]
    if size == 0:
        raise ValueError(f"the {split} split of task {state.task.name!r} is empty; it must hold examples")
    share = Subset(dataset, range(accelerator.process_index, size, accelerator.num_processes))
    seed_all(derive_seed(state.config.seed, Stream.EVALUATION, state.step, accelerator.process_index))
    sums: defaultdict[str, float] = defaultdict(float)
    model.eval()
    with torch.no_grad(), accelerator.autocast():
        for batch in DataLoader(share, batch_size=_batch_size(state)):
            for name, values in _checked(state, state.task.evaluate(model, state.place(batch))).items():
                sums[name] += values.cpu().double().sum().item()
    model.train()
    totals: defaultdict[str, float] = defaultdict(float)
    for part in gather_object([dict(sums)]):
        for name, value in part.items():
            totals[name] += value
    return {name: total / size for name, total in totals.items()}


def is_finite(metrics: dict[str, float]) -> bool:
    """Whether every value is a finite number."""
    return all(math.isfinite(value) for value in metrics.values())


def _batch_size(state: TrainState) -> int:
    """A micro-batch of training: it is known to fit."""
    return state.config.batch_size // (state.accelerator.num_processes * state.config.accumulation_steps)


def _checked(state: TrainState, values: dict[str, Tensor]) -> dict[str, Tensor]:
    for name in ("loss", state.task.metric):
        if name not in values:
            raise ValueError(f"evaluate of task {state.task.name!r} must return {name!r}; got {sorted(values)}")
    for name, value in values.items():
        if value.ndim != 1:
            raise ValueError(
                f"evaluate of task {state.task.name!r} must return one value per example, shape (B,); "
                f"got {name!r} of shape {tuple(value.shape)}"
            )
    return values
