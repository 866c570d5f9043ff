"""Stable rank and effective rank: ranks that need no threshold."""

from __future__ import annotations

import torch
from torch import Tensor

from .results import Measure
from .spectrum import SpectrumMethod, decompose


def stable_rank(matrices: Tensor, *, method: SpectrumMethod = "svd") -> Measure:
    """`||A||_F^2 / ||A||_2^2`, between 1 and the rank: ``(..., N, d) -> (...)``, in float64.

    Not defined for a zero matrix and where an entry is not finite.

    Args:
        matrices: ``(..., N, d)``.
        method: as in :func:`singular_values`.

    Raises:
        TypeError: complex or integer input.
        ValueError: fewer than two axes, an empty matrix, an unknown ``method``.

    Source: M. Rudelson, R. Vershynin, "Sampling from large matrices", J. ACM 54(4), 2007.
    """
    parts = decompose(matrices, method, torch.float64)
    defined = parts.finite & (parts.norm > 0)
    rank = (parts.norm / parts.values[..., 0]).square()
    return _measure(rank, defined, parts.method)


def effective_rank(matrices: Tensor, *, method: SpectrumMethod = "svd") -> Measure:
    """`exp(H(p))`, the entropy of `p_i = s_i / sum(s)`, between 1 and the rank: ``(..., N, d) -> (...)``, in float64.

    Not defined for a zero matrix and where an entry is not finite.

    Args:
        matrices: ``(..., N, d)``.
        method: as in :func:`singular_values`.

    Raises:
        TypeError: complex or integer input.
        ValueError: fewer than two axes, an empty matrix, an unknown ``method``.

    Source: O. Roy, M. Vetterli, "The effective rank", EUSIPCO 2007.
    """
    parts = decompose(matrices, method, torch.float64)
    defined = parts.finite & (parts.norm > 0)
    shares = parts.values / parts.values.sum(dim=-1, keepdim=True)
    return _measure(torch.special.entr(shares).sum(dim=-1).exp(), defined, parts.method)


def _measure(value: Tensor, defined: Tensor, method: str) -> Measure:
    return Measure(
        value=torch.where(defined, value, torch.nan), defined=defined, method=method, precision=torch.float64
    )
