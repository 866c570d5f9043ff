"""The mark of preconditioned attention in a checkpoint: a tensor whose shape is its content.

State dicts are averaged, subtracted, scaled and cast, and models are built on the meta device. That changes the values
of a tensor and not its shape, so the shape encodes the options. No size is 1, so marks of different options do not
broadcast and adding them raises. The tensor is not empty, because `max` and `quantile` of an empty tensor raise.

All values of a mark are one number, which repeats the options: readers that cut what is in a file to the size of what
is in memory (`torch.distributed.checkpoint` on a file of `torch.save`) change the shape and not the values. A value
that :func:`make_mark` does not write says nothing. Nor does 1, which marks of every shape had before.

An older form, three integers, is still read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from ..config import GRADIENTS, PLACEMENTS, Gradient, Placement

_VERSION = 2  # the first size
_FIRST = 2  # the size that stands for the first choice of an option
_OLD_VERSION = 1  # the first of the three integers


@dataclass(frozen=True)
class Mark:
    """The content of a mark: options of the module that it belongs to."""

    gradient: Gradient
    placement: Placement


def make_mark(mark: Mark, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """:func:`value_of` in every entry, of shape ``(version, 2 + gradient's index, 2 + placement's index)``."""
    shape = (_VERSION, _FIRST + GRADIENTS.index(mark.gradient), _FIRST + PLACEMENTS.index(mark.placement))
    return torch.ones(shape, device=device, dtype=dtype).fill_(value_of(mark))


def value_of(mark: Mark) -> float:
    """1 for the first choice of every option, otherwise a multiple of 1/8 between 1 and 2: exact in 8 bits."""
    number = GRADIENTS.index(mark.gradient) * len(PLACEMENTS) + PLACEMENTS.index(mark.placement)
    return 1.0 if number == 0 else 1 + (2 * number + 1) / 8


def is_current(tensor: Tensor) -> bool:
    """Whether ``tensor`` has the form of :func:`make_mark` with options that this version knows."""
    return _is_current_shape(tensor.shape)


def read_mark(tensor: Tensor) -> Mark:
    """The content of a mark in this form or in the older one of three integers, in any dtype.

    Raises:
        ValueError: it has neither form: it is of a later version, or three numbers that arithmetic has changed.
    """
    if not isinstance(tensor, Tensor):
        raise ValueError(
            f"the checkpoint's mark is {tensor!r:.80}, and a mark is a tensor: copy the key from the checkpoint that "
            "was trained, or delete it if you know that the model was trained preconditioned"
        )
    if is_current(tensor):
        return _in_values(tensor) or read_shape(tensor.shape)
    if tensor.shape != (3,):
        raise ValueError(
            f"the checkpoint's mark has shape {tuple(tensor.shape)}, so it is of another version than those that this "
            "package reads; load it with the version that wrote it"
        )
    if tensor.is_meta:
        raise ValueError("the checkpoint's mark is three integers on the meta device, which cannot be read there")
    version, *choices = tensor.tolist()
    if version != _OLD_VERSION or not _known(choices):
        raise ValueError(
            f"the checkpoint's mark {tensor.tolist()} is of another version than those that this package reads, or "
            "arithmetic on state dicts or memory that was never written has changed it: copy the key from a checkpoint "
            "that took part, or delete it if you know that the model was trained preconditioned"
        )
    return _mark([int(choice) for choice in choices])


def read_shape(shape: torch.Size) -> Mark:
    """The content of a mark of which only the shape is known, in this form.

    Raises:
        ValueError: the shape is that of another form.
    """
    if not _is_current_shape(shape):
        raise ValueError(f"the checkpoint's mark has shape {tuple(shape)}, which names no options in this version")
    return _mark([size - _FIRST for size in shape[1:]])


def _is_current_shape(shape: torch.Size) -> bool:
    version, *sizes = shape if len(shape) == 3 else (0,)
    return version == _VERSION and _known([size - _FIRST for size in sizes])


def _in_values(tensor: Tensor) -> Mark | None:
    """The options that the values repeat; None if they say nothing, or cannot be read here."""
    if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.is_meta or not tensor.is_floating_point():
        return None
    low, high = (bound.item() for bound in torch.aminmax(tensor.detach().float()))
    marks = (_mark([i, j]) for i in range(len(GRADIENTS)) for j in range(len(PLACEMENTS)))
    return next((mark for mark in marks if low == high == value_of(mark) != 1), None)


def _known(choices: list[float]) -> bool:
    return choices[0] in range(len(GRADIENTS)) and choices[1] in range(len(PLACEMENTS))


def _mark(choices: list[int]) -> Mark:
    return Mark(cast(Gradient, GRADIENTS[choices[0]]), cast(Placement, PLACEMENTS[choices[1]]))
