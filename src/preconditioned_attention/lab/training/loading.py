"""Batches from torch's ``DataLoader``, whose worker processes hand on an error as it was raised.

torch raises an error of a worker process anew with the worker's traceback in its message, a page of text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, Dataset

from ..tasks import Batch
from .interruption import ignore_signals


@dataclass
class _Failure:
    """An example that could not be read."""

    error: OSError | ValueError


class Examples(Dataset[Any]):
    """The examples of a dataset, with what cannot be read as an example of its own, for :class:`BatchLoader`."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        try:
            return self._dataset[index]
        except (OSError, ValueError) as error:
            return _Failure(error)


class BatchLoader:
    """A ``DataLoader`` over :class:`Examples` that raises the dataset's own error for one that cannot be read.

    Args:
        dataset: gives the examples.
        collate: makes a batch of examples.
        workers: processes that load ahead; they leave signals to the process that trains.
        options: others of ``DataLoader``.
    """

    def __init__(
        self, dataset: Dataset[Any], *, collate: Callable[[list[Any]], Batch], workers: int, **options: Any
    ) -> None:
        self._loader = DataLoader(
            dataset, collate_fn=_Collate(collate), num_workers=workers, worker_init_fn=ignore_signals, **options
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        return map(_checked, self._loader)


def _checked(batch: Batch) -> Batch:
    if isinstance(batch, _Failure):
        raise batch.error
    return batch


@dataclass
class _Collate:
    """Makes a batch, or finds the example that could not be read."""

    collate: Callable[[list[Any]], Batch]

    def __call__(self, examples: list[Any]) -> Batch:
        failures = (one for one in examples if isinstance(one, _Failure))
        return next(failures, None) or self.collate(examples)
