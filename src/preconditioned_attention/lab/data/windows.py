"""Windows of a long stream of tokens: at random places for training, every token once for evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..._checks import check_integer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Integers = NDArray[Any]

NOT_SCORED = -100  # what torch's cross-entropy ignores


class RandomWindows(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of ``length`` tokens and the ``length`` that follow each of them, from anywhere in the stream.

    Example `i` begins at `i * length`, moved on by a random number of tokens below ``length`` from torch's global
    generator, which the training loop seeds. An epoch reads about as many tokens as the stream has.

    Args:
        tokens: the stream, an array of NumPy's of any integer type, memory-mapped or not.
        length: the model's context.

    Raises:
        ValueError: the stream has no room for a window.
    """

    def __init__(self, tokens: Integers, length: int) -> None:
        check_integer("length", length, minimum=1)
        if len(tokens) < length + 1:
            raise ValueError(f"tokens must hold more than one window of {length}; got {len(tokens)} tokens")
        self._tokens = tokens
        self._length = length

    def __len__(self) -> int:
        return max(1, (len(self._tokens) - 1) // self._length)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        shift = int(torch.randint(self._length, ()))
        start = min(index * self._length + shift, len(self._tokens) - self._length - 1)
        window = _tensor(self._tokens[start : start + self._length + 1])
        return window[:-1], window[1:]


class ScoredWindows(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of tokens and targets in which every token of the stream but its first is a target exactly once.

    Windows overlap by half, and only what a window sees after its first half is scored (in the first window all), so
    that every scored token has at least ``length // 2`` tokens before it. Other targets are -100. The last window is
    filled up at its end.

    Args:
        tokens: the stream, as in :class:`RandomWindows`.
        length: the model's context, at least 2.

    Raises:
        ValueError: there is nothing to predict.
    """

    def __init__(self, tokens: Integers, length: int) -> None:
        check_integer("length", length, minimum=2)
        if len(tokens) < 2:
            raise ValueError(f"tokens must hold at least two tokens; got {len(tokens)}")
        self._tokens = tokens
        self._length = length
        self._stride = length // 2

    def __len__(self) -> int:
        after_first = len(self._tokens) - 1 - self._length
        return 1 + max(0, -(-after_first // self._stride))

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"index must be 0 to {len(self) - 1}; got {index}")
        start = index * self._stride
        window = _tensor(self._tokens[start : start + self._length + 1])
        inputs, targets = torch.zeros(self._length, dtype=torch.long), torch.full((self._length,), NOT_SCORED)
        inputs[: len(window) - 1], targets[: len(window) - 1] = window[:-1], window[1:]
        if index:
            targets[: self._length - self._stride] = NOT_SCORED
        return inputs, targets


def _tensor(tokens: Integers) -> Tensor:
    """The tokens as int64, in memory of their own."""
    return torch.from_numpy(tokens.astype("int64"))
