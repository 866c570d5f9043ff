"""Training examples in micro-batches whose augmentations depend on the run's seed and the micro-batch alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import Dataset

from ..tasks import Batch
from .loading import BatchLoader, Examples
from .order import BatchOrder
from .randomness import Stream, derive_seed, seed_all

Key = tuple[int, int]


class SeededExamples(Dataset[Any]):
    """A dataset that loads a whole micro-batch after seeding the global generators.

    So augmentations do not depend on the number of worker processes or on resuming.

    Args:
        dataset: the training split.
        seed: the run's seed.
        process: which of the processes this is.
    """

    def __init__(self, dataset: Dataset[Any], *, seed: int, process: int) -> None:
        self._dataset = Examples(dataset)
        self._seed = seed
        self._process = process

    def __getitems__(self, keys: list[Key]) -> list[Any]:
        """The examples of one micro-batch; a key is the micro-batch's number in the run, and an index."""
        seed_all(derive_seed(self._seed, Stream.EXAMPLES, keys[0][0], self._process))
        return [self._dataset[index] for _, index in keys]


def load_batches(
    dataset: Dataset[Any], order: BatchOrder, *, collate: Callable[[list[Any]], Batch], workers: int
) -> Iterator[Batch]:
    """The micro-batches of ``order``, without end; ``workers`` processes load them ahead."""
    examples = SeededExamples(dataset, seed=order.seed, process=order.process)
    return iter(BatchLoader(examples, collate=collate, workers=workers, batch_sampler=_keys(order)))


def _keys(order: BatchOrder) -> Iterator[list[Key]]:
    for number, indices in enumerate(order, start=order.first_step * order.accumulation_steps):
        yield [(number, index) for index in indices]
