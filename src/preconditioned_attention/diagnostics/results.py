"""The results of the diagnostics: values, how they were computed, and where they are not defined."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One number per matrix, ``(...)`` for input ``(..., N, d)``.

    Attributes:
        value: the number, in ``precision``; NaN exactly where ``defined`` is False.
        defined: False where there is no such number: entries that are not finite, and cases that the function names.
        method: how it was computed, in words.
        precision: the dtype of the arithmetic; not that of the input.
    """

    value: Tensor
    defined: Tensor
    method: str
    precision: torch.dtype


@dataclass(frozen=True, kw_only=True)
class Spectrum(Measure):
    """All `min(N, d)` singular values per matrix: ``value`` is ``(..., min(N, d))``, descending.

    Attributes:
        error: per matrix, the largest absolute error of the arithmetic in any of them; the rounding of the input is
            not part of it.
    """

    error: Tensor


@dataclass(frozen=True, kw_only=True)
class Conditioning(Measure):
    """Condition numbers, with bounds.

    ``value`` is NaN, and ``defined`` False, where ``numerically_singular`` is True and where entries are not finite.

    Attributes:
        numerically_singular: some matrix within the rounding errors of this one is exactly singular, so its condition
            number is meaningless; a zero matrix too.
        lower: every matrix within the rounding errors has a condition number of at least this. Where the flag is set
            this is all that is known.
        upper: and of at most this; inf exactly where the flag is set.
    """

    numerically_singular: Tensor
    lower: Tensor
    upper: Tensor
