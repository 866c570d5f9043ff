"""Labeled sequences of ids, one byte per token in memory, and batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

PADDING = 0
BYTE_OFFSET = 1  # text: the id of a byte is one more than the byte


class Sequences(Dataset[tuple[Tensor, int]]):
    """Pairs of ids, int64 ``(N,)``, and a label.

    Args:
        ids: one ``bytes`` per sequence, a byte per token.
        labels: one per sequence.
        offset: is added to every byte.
    """

    def __init__(self, ids: Sequence[bytes], labels: Sequence[int], *, offset: int = 0) -> None:
        self.ids = ids
        self.labels = labels
        self._offset = offset

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return as_ids(self.ids[index], self._offset), self.labels[index]


def as_ids(content: bytes, offset: int = 0) -> Tensor:
    """The bytes as int64 ids ``(N,)``, each plus ``offset``."""
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).long() + offset


def collate_sequences(examples: Sequence[tuple[Any, ...]]) -> tuple[Tensor, ...]:
    """Ids padded with 0 to the longest of the batch, ``(B, N)`` for every sequence of an example; then the labels."""
    *sequences, labels = zip(*examples, strict=True)
    padded = (pad_sequence(list(each), batch_first=True, padding_value=PADDING) for each in sequences)
    return (*padded, torch.tensor(labels))
