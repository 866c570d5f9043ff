"""Metrics of a split: means over its examples, and scores of the whole split."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, default_collate

from ..tasks import Batch
from .loading import BatchLoader, Examples
from .randomness import Stream, derive_seed, seed_all
from .sharding import free_gathered
from .state import TrainState

Values = Mapping[str, Tensor | list[Any]]


def evaluate(
    state: TrainState,
    dataset: Dataset[Any],
    *,
    split: str,
    collate: Callable[[list[Any]], Batch] = default_collate,
    check: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Means of the tensors of the task's ``evaluate``, and what its ``score`` computes from the lists.

    Each process takes its share of the examples without padding, so every example counts once, and the metrics are
    the same for any number of processes (means: up to rounding).

    Args:
        state: the run.
        dataset: the split.
        split: its name, for errors.
        collate: makes a batch of examples.
        check: called before every batch, equally often on every process; what it raises ends the evaluation.

    Raises:
        ValueError: the split is empty, or the task returns something else than one value per example, or its metric
            is not among what it returns.
    """
    accelerator, model = state.accelerator, state.evaluated
    size = len(dataset)  # type: ignore[arg-type]
    if size == 0:
        raise ValueError(f"the {split} split of task {state.task.name!r} is empty; it must hold examples")
    share = Examples(Subset(dataset, range(accelerator.process_index, size, accelerator.num_processes)))
    loader = BatchLoader(share, collate=collate, workers=state.config.workers, batch_size=_batch_size(state))
    seed_all(derive_seed(state.config.seed, Stream.EVALUATION, state.step, accelerator.process_index))
    sums: defaultdict[str, float] = defaultdict(float)
    lists: defaultdict[str, list[Any]] = defaultdict(list)
    model.eval()
    try:
        for values in _evaluate_batches(state, loader, dataset, collate, check):
            for name, value in values.items():
                if isinstance(value, Tensor):
                    sums[name] += value.cpu().double().sum().item()
                else:
                    lists[name].extend(value)
    finally:
        if state.sharded:
            free_gathered(model)
        model.train()
    return _with_metric(state, {**_means(sums, size), **_scores(state, dataset, lists)})


def _evaluate_batches(
    state: TrainState,
    loader: BatchLoader,
    dataset: Dataset[Any],
    collate: Callable[[list[Any]], Batch],
    check: Callable[[], None],
) -> Iterator[Values]:
    """What the task returns for each batch of this process's share, after ``check``, without gradients."""
    model, accelerator = state.evaluated, state.accelerator
    share = math.ceil(len(dataset) / accelerator.num_processes)  # type: ignore[arg-type]
    with torch.no_grad(), accelerator.autocast():
        for batch in loader:
            check()
            yield _checked(state, state.task.evaluate(model, state.place(batch)))
        if len(loader) < math.ceil(share / _batch_size(state)):  # others have one more batch
            check()
            if state.sharded:  # and this process's parts of the weights take part in every pass
                state.task.evaluate(model, state.place(collate([dataset[0]])))


def is_finite(metrics: dict[str, float]) -> bool:
    """Whether every value is a finite number."""
    return all(math.isfinite(value) for value in metrics.values())


def _batch_size(state: TrainState) -> int:
    """A micro-batch of training: it is known to fit."""
    return state.config.batch_size // (state.accelerator.num_processes * state.config.accumulation_steps)


def _means(sums: Mapping[str, float], size: int) -> dict[str, float]:
    """The means over the split, from the sums over every process's share."""
    from accelerate.utils import gather_object

    totals: defaultdict[str, float] = defaultdict(float)
    for part in gather_object([dict(sums)]):
        for name, value in part.items():
            totals[name] += value
    return {name: total / size for name, total in totals.items()}


def _scores(state: TrainState, dataset: Dataset[Any], lists: Mapping[str, list[Any]]) -> dict[str, float]:
    """The task's score of all processes' lists, joined in the order of the dataset."""
    from accelerate.utils import gather_object

    parts = gather_object([dict(lists)])
    size = len(dataset)  # type: ignore[arg-type]
    names = list(dict.fromkeys(name for part in parts for name in part))
    joined = {name: [parts[index % len(parts)][name][index // len(parts)] for index in range(size)] for name in names}
    return state.task.score(dataset, joined) if names else {}


def _checked(state: TrainState, values: Values) -> Values:
    for name, value in values.items():
        if isinstance(value, Tensor) and value.ndim != 1:
            raise ValueError(
                f"evaluate of task {state.task.name!r} must return one value per example, shape (B,); "
                f"got {name!r} of shape {tuple(value.shape)}"
            )
    return values


def _with_metric(state: TrainState, metrics: dict[str, float]) -> dict[str, float]:
    if state.task.metric not in metrics:
        raise ValueError(
            f"task {state.task.name!r} must report its metric {state.task.metric!r}; got {sorted(metrics)}"
        )
    return metrics
