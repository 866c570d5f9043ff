"""Singular values of batches of matrices, by a singular value decomposition or through the Gram matrix."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .._checks import check_known
from ..equilibration import check_rows
from .refinement import refined_smallest
from .results import Spectrum

# The Gram matrix squares the condition number: the relative error of the smallest singular value is `eps kappa^2 / 2`.
# Up to this condition number that stays under 1e-6.
_GRAM_SAFE = 1e-3 / torch.finfo(torch.float64).eps ** 0.5
# The relative error of the decomposition is `eps kappa`: from here on the smallest singular value is refined.
_SVD_SAFE = 1e8

SpectrumMethod = Literal["svd", "gram"]


class Decomposition(NamedTuple):
    """Singular values of `2**-exponent A`, whose largest entry is about 1; of zeros where entries are not finite."""

    values: Tensor  # (..., min(N, d)), descending
    error: Tensor  # (...), the largest error of the arithmetic in any of them
    norm: Tensor  # (...), ||2**-exponent A||_F
    exponent: Tensor  # (...)
    finite: Tensor  # (...), all entries are
    method: str


def check_matrices(matrices: Tensor) -> None:
    """Raise unless ``matrices`` is a floating-point tensor ``(..., N, d)`` with `N, d >= 1`."""
    check_rows(matrices, "matrices")
    if matrices.dim() < 2 or 0 in matrices.shape[-2:]:
        raise ValueError(f"matrices must have shape (..., N, d) with N, d >= 1; got {tuple(matrices.shape)}")


def normalized(matrices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`2**-exponent A` in float64, the exponent, and whether all entries are finite; zeros where they are not.

    A power of two per matrix is exact and keeps squares in range, whatever the size of the entries.
    """
    given = matrices.detach()
    finite = given.isfinite().all(dim=-1).all(dim=-1)
    wide = torch.where(finite[..., None, None], given.to(torch.float64), 0.0)
    exponent = torch.frexp(wide.abs().amax(dim=(-2, -1))).exponent.to(torch.float64)
    half = (exponent / 2).floor()  # 2**-exponent alone is infinite for the smallest numbers that float64 holds
    once = torch.ldexp(wide, -half[..., None, None])
    return torch.ldexp(once, (half - exponent)[..., None, None]), exponent, finite


def decompose(matrices: Tensor, method: SpectrumMethod, precision: torch.dtype) -> Decomposition:
    """Check the arguments and compute; see :func:`singular_values`."""
    check_matrices(matrices)
    check_known("method", [method], ["svd", "gram"])
    if precision not in (torch.float32, torch.float64):
        raise ValueError(f"precision must be torch.float64 or torch.float32; got {precision}")
    if method == "gram" and precision != torch.float64:
        raise ValueError(f'method="gram" computes in torch.float64 only; got precision={precision}')
    scaled, exponent, finite = normalized(matrices)
    values, error, words = (_by_gram if method == "gram" else _by_svd)(scaled.to(precision))
    norm = torch.linalg.vector_norm(scaled, dim=(-2, -1))
    return Decomposition(values, error, norm, exponent, finite, words)


def singular_values(
    matrices: Tensor, *, method: SpectrumMethod = "svd", precision: torch.dtype = torch.float64
) -> Spectrum:
    """All singular values of each matrix, descending: ``(..., N, d) -> (..., min(N, d))``.

    Args:
        matrices: ``(..., N, d)``, float16, bfloat16, float32 or float64.
        method: ``"svd"``, or ``"gram"``: square roots of the eigenvalues of `A^T A` (`A A^T` if wide), cheaper where
            `N >> d`. The Gram matrix squares the condition number, so matrices whose condition number exceeds
            `1e-3 / sqrt(eps)` (6.7e4) are computed again by ``"svd"``, and ``method`` of the result says how many.
        precision: of the arithmetic: float64, or float32, which is less exact and faster; ``"gram"`` does not
            support it, because squaring leaves too few digits of float32.

    Returns:
        A :class:`Spectrum`; not defined where a matrix has an entry that is not finite. In float64 the smallest
        value of a matrix with a condition number above 1e8 is refined (see ``refinement.py``).

    Raises:
        TypeError: complex or integer input.
        ValueError: fewer than two axes, an empty matrix, an unknown ``method`` or ``precision``, or two that exclude
            each other.
    """
    parts = decompose(matrices, method, precision)
    return Spectrum(
        value=_where(parts.finite[..., None], torch.ldexp(parts.values, parts.exponent[..., None])),
        defined=parts.finite,
        method=parts.method,
        precision=precision,
        error=_where(parts.finite, torch.ldexp(parts.error, parts.exponent)),
    )


def _where(known: Tensor, values: Tensor) -> Tensor:
    return torch.where(known, values, torch.nan)


def _by_svd(matrices: Tensor) -> tuple[Tensor, Tensor, str]:
    values = torch.linalg.svdvals(matrices)
    error = max(matrices.shape[-2:]) * torch.finfo(matrices.dtype).eps * values[..., 0]
    if matrices.dtype != torch.float64:
        return values, error, "svd"
    hard = (values[..., -1] > error) & (values[..., 0] > _SVD_SAFE * values[..., -1])
    if hard.any():
        values = values.clone()
        values[hard, -1] = torch.stack([refined_smallest(matrix) for matrix in matrices[hard]])
    return values, error, f"svd, smallest refined in {int(hard.sum())} of {hard.numel()}" if hard.any() else "svd"


def _by_gram(matrices: Tensor) -> tuple[Tensor, Tensor, str]:
    wide = matrices.shape[-2] < matrices.shape[-1]
    gram = matrices @ matrices.mT if wide else matrices.mT @ matrices
    values = torch.linalg.eigvalsh(gram).flip(-1).clamp_min(0).sqrt()
    eps = torch.finfo(matrices.dtype).eps
    # Half of max(N, d) eps s_max^2 / s_min: the eigenvalue's error as one of s_min.
    error = max(matrices.shape[-2:]) * eps * values[..., 0] * (values[..., 0] / values[..., -1]) / 2
    unsafe = ~(values[..., 0] <= _GRAM_SAFE * values[..., -1])
    unsafe |= values[..., 0] == 0
    if unsafe.any():
        values[unsafe], error[unsafe], _ = _by_svd(matrices[unsafe])
    again = f" ({int(unsafe.sum())} of {unsafe.numel()} by svd: condition number above {_GRAM_SAFE:.1e})"
    return values, error, "gram" + (again if unsafe.any() else "")
