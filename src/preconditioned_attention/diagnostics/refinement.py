"""The smallest singular value of an ill-conditioned matrix, more precisely than by a decomposition in float64."""

from __future__ import annotations

import torch
from torch import Tensor

_SMALL = 1e-8


def refined_smallest(matrix: Tensor) -> Tensor:
    """`s_min` of one float64 matrix ``(N, d)`` with entries of about 1: a scalar.

    A decomposition in float64 has an error of about `eps s_max` in every singular value, a relative error of
    `eps kappa` in `s_min`: four digits are left at a condition number of 1e12. Its singular vectors are more exact.
    Let `V` hold those of all singular values below `1e-8 s_max`; the products `A V` are formed with twice the digits,
    and their smallest singular value is that of `A` up to about `(eps kappa)^2 / 2`, because it depends on the error
    of `V` in second order only (Rayleigh and Ritz).
    """
    tall = matrix if matrix.size(0) >= matrix.size(1) else matrix.mT
    _, values, vectors = torch.linalg.svd(tall, full_matrices=False)
    small = vectors[values <= torch.maximum(_SMALL * values[0], values[-1])]
    return torch.linalg.svdvals(torch.stack([exact_product(tall, v) for v in small], dim=-1))[-1]


def exact_product(matrix: Tensor, vector: Tensor) -> Tensor:
    """`A v` as if computed with twice the digits of float64 and rounded once: ``(N, d), (d,) -> (N,)``.

    Source: T. Ogita, S. Rump, S. Oishi, "Accurate sum and dot product", SIAM J. Sci. Comput. 26(6), 2005.
    """
    terms, errors = _product(matrix, vector)
    while terms.size(-1) > 1:
        if terms.size(-1) % 2:
            terms, errors = (torch.nn.functional.pad(part, (0, 1)) for part in (terms, errors))
        terms, lost = _sum(terms[..., ::2], terms[..., 1::2])
        errors = errors[..., ::2] + errors[..., 1::2] + lost
    return (terms + errors).squeeze(-1)


def _sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """`a + b` and its rounding error, exactly (Knuth)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _product(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """`a b` and its rounding error, exactly (Dekker)."""
    product = a * b
    (a_high, a_low), (b_high, b_low) = _halves(a), _halves(b)
    return product, a_low * b_low - (((product - a_high * b_high) - a_low * b_high) - a_high * b_low)


def _halves(a: Tensor) -> tuple[Tensor, Tensor]:
    shifted = a * (2.0**27 + 1)
    high = shifted - (shifted - a)
    return high, a - high
