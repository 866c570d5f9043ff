"""The order of the batches: a pure function of the seed and the step."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .randomness import Stream, derive_seed


@dataclass(frozen=True, kw_only=True)
class BatchOrder:
    """The micro-batches of one process, from one step on, without end: a ``batch_sampler`` for a ``DataLoader``.

    Every epoch is one permutation of the data, or the data in its own order, without the rest that fills no global
    batch. A global batch holds the same examples for any number of processes and of micro-batches.

    Args:
        size: examples in the dataset.
        batch_size: examples of a global batch.
        seed: the run's seed.
        processes: how many processes share a batch.
        process: which of them this is.
        accumulation_steps: micro-batches per global batch.
        repeats: how often each example of an epoch comes in a row; the epoch has room for ``1 / repeats`` of the data.
        shuffle: False: the data in its own order, epoch after epoch.
        ramp_steps: the number of steps over which the global batch grows linearly to ``batch_size``; it is always a
            multiple of processes times micro-batches. 0: it is ``batch_size`` from the first step on.
        first_step: the optimizer step to begin with.

    Raises:
        ValueError: the batch is larger than the dataset, or processes and micro-batches do not divide it.
    """

    size: int
    batch_size: int
    seed: int
    processes: int = 1
    process: int = 0
    accumulation_steps: int = 1
    repeats: int = 1
    shuffle: bool = True
    ramp_steps: int = 0
    first_step: int = 0

    def __post_init__(self) -> None:
        if self.batch_size > self.size:
            raise ValueError(f"batch_size must be at most the {self.size} training examples; got {self.batch_size}")
        if self.batch_size % (self.processes * self.accumulation_steps):
            raise ValueError(
                f"batch_size must be a multiple of processes times accumulation_steps, "
                f"{self.processes} x {self.accumulation_steps}; got {self.batch_size}"
            )

    def __iter__(self) -> Iterator[list[int]]:
        per_epoch = self.size // self.batch_size * self.batch_size
        epoch, offset = divmod(sum(map(self.batch_size_at, range(self.first_step))), per_epoch)
        rest = self._epoch_order(epoch)[offset:per_epoch]
        for step in itertools.count(self.first_step):
            size = self.batch_size_at(step)
            if len(rest) < size:  # a growing batch may lie across two epochs
                epoch += 1
                rest = torch.cat([rest, self._epoch_order(epoch)[:per_epoch]])
            batch, rest = rest[:size], rest[size:]
            yield from batch.view(self.accumulation_steps, self.processes, -1)[:, self.process].tolist()

    def batch_size_at(self, step: int) -> int:
        """The global batch of the step with this index, from 0."""
        if step >= self.ramp_steps:
            return self.batch_size
        unit = self.processes * self.accumulation_steps
        return max(1, self.batch_size * (step + 1) // (self.ramp_steps * unit)) * unit

    def _epoch_order(self, epoch: int) -> Tensor:
        if not self.shuffle:
            return torch.arange(self.size).repeat_interleave(self.repeats)[: self.size]
        generator = torch.Generator().manual_seed(derive_seed(self.seed, Stream.ORDER, epoch))
        return torch.randperm(self.size, generator=generator).repeat_interleave(self.repeats)[: self.size]
