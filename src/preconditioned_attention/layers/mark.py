"""The mark of preconditioned attention in a checkpoint: a tensor whose shape is its content.

State dicts are averaged, subtracted, scaled and cast, and models are built on the meta device. That changes the values
of a tensor and not its shape, so the shape encodes the options and all values are one. No size is 1, so marks of
different options do not broadcast and adding them raises. The tensor is not empty, because `max` and `quantile` of an
empty tensor raise.

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
    """Ones of shape ``(version, 2 + gradient's index, 2 + placement's index)``."""
    choices = (GRADIENTS.index(mark.gradient), PLACEMENTS.index(mark.placement))
    return torch.ones(_VERSION, *(_FIRST + choice for choice in choices), device=device, dtype=dtype)


def is_current(tensor: Tensor) -> bool:
    """Whether ``tensor`` has the form of :func:`make_mark` with options that this version knows."""
    version, *sizes = tensor.shape if tensor.dim() == 3 else (0,)
    return version == _VERSION and _known([size - _FIRST for size in sizes])


def read_mark(tensor: Tensor) -> Mark:
    """The content of a mark in this form or in the older one of three integers, in any dtype.

    Raises:
        ValueError: it has neither form: it is of a later version, or three numbers that arithmetic has changed.
    """
    if is_current(tensor):
        return _mark([size - _FIRST for size in tensor.shape[1:]])
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


def _known(choices: list[float]) -> bool:
    return choices[0] in range(len(GRADIENTS)) and choices[1] in range(len(PLACEMENTS))


def _mark(choices: list[int]) -> Mark:
    return Mark(cast(Gradient, GRADIENTS[choices[0]]), cast(Placement, PLACEMENTS[choices[1]]))
