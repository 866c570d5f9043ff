"""Condition numbers of batches of matrices, and where the dtype cannot tell them."""

from __future__ import annotations

import torch
from torch import Tensor

from .results import Conditioning
from .spectrum import SpectrumMethod, decompose


def condition_number(
    matrices: Tensor, *, method: SpectrumMethod = "svd", precision: torch.dtype = torch.float64
) -> Conditioning:
    """`kappa(A) = s_max / s_min` over the `min(N, d)` singular values: ``(..., N, d) -> (...)``.

    A matrix of one row or one column has condition number 1.

    The rule for ``numerically_singular``. The entries were rounded to the input's dtype, which moves a singular value
    by at most `u ||A||_F` with `u = eps(dtype) / 2` (Weyl); the arithmetic moves it by another `max(N, d)
    eps(precision) s_max`. Where `s_min` is not larger than the sum, a matrix that rounds to this one is singular:
    there is no number then, but a flag and a lower bound. float32 can so tell condition numbers up to 2e6 and more
    (`1 / (u sqrt(rank))`), bfloat16 up to 30 for `d = 64`, float64 up to `1 / (max(N, d) eps)`.

    Args:
        matrices: ``(..., N, d)``, float16, bfloat16, float32 or float64.
        method: ``"svd"`` or ``"gram"`` as in :func:`singular_values`.
        precision: of the arithmetic, float64 or float32.

    Raises:
        TypeError: complex or integer input.
        ValueError: fewer than two axes, an empty matrix, an unknown ``method`` or ``precision``.
    """
    parts = decompose(matrices, method, precision)
    unit = torch.finfo(matrices.dtype).eps / 2
    error = parts.error + unit * parts.norm
    return conditioning(parts.values[..., 0], parts.values[..., -1], error, parts.finite, parts.method)


def conditioning(largest: Tensor, smallest: Tensor, error: Tensor, finite: Tensor, method: str) -> Conditioning:
    """The result from the two extreme singular values, each known up to ``error``."""
    singular = finite & (smallest <= error)
    defined = finite & ~singular
    least = ((largest - error) / (smallest + error)).clamp_min(1.0)
    return Conditioning(
        value=torch.where(defined, largest / smallest, torch.nan),
        defined=defined,
        method=method,
        precision=largest.dtype,
        numerically_singular=singular,
        lower=torch.where(finite, torch.where(largest > 0, least, 1.0), torch.nan),
        upper=torch.where(finite, torch.where(singular, torch.inf, (largest + error) / (smallest - error)), torch.nan),
    )
