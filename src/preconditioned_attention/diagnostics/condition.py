"""Condition numbers of batches of matrices, and where the dtype cannot tell them."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .._checks import check_known
from .extremes import extreme_singular_values
from .results import Conditioning
from .spectrum import check_matrices, decompose, normalized

ConditionMethod = Literal["svd", "gram", "lanczos"]


class _Known(NamedTuple):
    """The extreme singular values of `2**-exponent A` and their errors by the arithmetic."""

    largest: Tensor
    smallest: Tensor
    largest_error: Tensor
    smallest_error: Tensor
    norm: Tensor
    finite: Tensor
    method: str


def condition_number(
    matrices: Tensor, *, method: ConditionMethod = "svd", precision: torch.dtype = torch.float64
) -> Conditioning:
    """`kappa(A) = s_max / s_min` over the `min(N, d)` singular values: ``(..., N, d) -> (...)``.

    A matrix of one row or one column has condition number 1.

    The rule for ``numerically_singular``. The entries were rounded to the input's dtype, which moves a singular value
    by at most `u ||A||_F` with `u = eps(dtype) / 2` (Weyl); the arithmetic moves it by another `max(N, d)
    eps(precision) s_max`. Where `s_min` is not larger than the sum, a matrix that rounds to this one is singular:
    the result is then a flag and a lower bound instead of a number. So float32 resolves condition numbers up to 2e6 and
    more (`1 / (u sqrt(rank))`), bfloat16 up to 30 for `d = 64`, float64 up to `1 / (max(N, d) eps)`.

    Args:
        matrices: ``(..., N, d)``, float16, bfloat16, float32 or float64.
        method: ``"svd"`` or ``"gram"`` as in :func:`singular_values`; or ``"lanczos"``, for matrices that are large
            both ways such as softmax matrices: iterative estimates, whose own error is part of ``lower`` and ``upper``
            (see ``extremes.py``). It runs on the CPU, one matrix after the other.
        precision: of the arithmetic, float64 or float32; only ``"svd"`` supports float32.

    Raises:
        TypeError: complex or integer input.
        ValueError: fewer than two axes, an empty matrix, an unknown ``method`` or ``precision``, or two that exclude
            each other.
        RuntimeError: ``"lanczos"`` did not converge.
        ImportError: ``"lanczos"`` without scipy (extra ``train``).
    """
    check_known("method", [method], ["svd", "gram", "lanczos"])
    known = _by_lanczos(matrices, precision) if method == "lanczos" else _by_spectrum(matrices, method, precision)
    rounding = torch.finfo(matrices.dtype).eps / 2 * known.norm
    largest, smallest = known.largest, known.smallest
    above, below = known.largest_error + rounding, known.smallest_error + rounding
    singular = known.finite & (smallest <= below)
    defined = known.finite & ~singular
    lower = torch.where(largest > 0, ((largest - above) / (smallest + below)).clamp_min(1.0), 1.0)
    upper = torch.where(singular, torch.inf, (largest + above) / (smallest - below))
    return Conditioning(
        value=torch.where(defined, largest / smallest, torch.nan),
        defined=defined,
        method=known.method,
        precision=precision,
        numerically_singular=singular,
        lower=torch.where(known.finite, lower, torch.nan),
        upper=torch.where(known.finite, upper, torch.nan),
    )


def _by_spectrum(matrices: Tensor, method: Literal["svd", "gram"], precision: torch.dtype) -> _Known:
    parts = decompose(matrices, method, precision)
    values = parts.values
    return _Known(values[..., 0], values[..., -1], parts.error, parts.error, parts.norm, parts.finite, parts.method)


def _by_lanczos(matrices: Tensor, precision: torch.dtype) -> _Known:
    check_matrices(matrices)
    if precision != torch.float64:
        raise ValueError(f'method="lanczos" computes in torch.float64 only; got precision={precision}')
    scaled, _, finite = normalized(matrices)
    found = extreme_singular_values(scaled)
    return _Known(*found[:4], torch.linalg.vector_norm(scaled, dim=(-2, -1)), finite, found.method)
