"""The largest and smallest singular value of large matrices, by Lanczos iteration instead of a decomposition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._extras import require

_LEAST_SIZE = 32  # below this a decomposition is cheaper than any iteration
_TOLERANCE = 1e-10


class Extremes(NamedTuple):
    """Largest and smallest singular value of each matrix, and how far off each may be, in float64: ``(...)``."""

    largest: Tensor
    smallest: Tensor
    largest_error: Tensor
    smallest_error: Tensor
    method: str


def extreme_singular_values(matrices: Tensor) -> Extremes:
    """Golub-Kahan-Lanczos (ARPACK, through scipy) on the triangular factor `R` of each matrix, and on its inverse.

    The factorization `A = Q R` costs a fraction of a singular value decomposition, and on `R^-1` the smallest singular
    value is the one that Lanczos finds first. It squares nothing.

    The errors. Let `rho` be the residual of the computed triple `(s, u, v)`, `||R v - s u||` and `||R^T u - s v||`.
    Then some singular value lies within `rho` of `s`. The iteration converges to the extreme one from a
    start vector that is not orthogonal to its singular vector; a seeded random one is used. One side always holds:
    the true `s_max` is not below the estimate, nor the true `s_min` above it, up to rounding. To
    both errors `max(N, d) eps s_max` is added for the arithmetic.

    Args:
        matrices: ``(..., N, d)``, finite, float64, with entries of about 1.

    Raises:
        RuntimeError: no convergence.
        ImportError: without scipy (extra ``train``).
    """
    flat = matrices.reshape(-1, *matrices.shape[-2:])
    found = torch.tensor([_extremes(matrix) for matrix in flat], dtype=torch.float64).view(*matrices.shape[:-2], 4)
    if min(matrices.shape[-2:]) < _LEAST_SIZE:
        words = f"svd (lanczos begins at {_LEAST_SIZE} rows and columns)"
    else:
        words = "lanczos on R and its inverse (A = Q R)"
    largest, smallest, largest_error, smallest_error = found.to(matrices.device).unbind(-1)
    return Extremes(largest, smallest, largest_error, smallest_error, words)


def _extremes(matrix: Tensor) -> tuple[float, float, float, float]:
    rounding = max(matrix.shape) * torch.finfo(torch.float64).eps
    if min(matrix.shape) < _LEAST_SIZE:
        values = torch.linalg.svdvals(matrix)
        error = rounding * values[0].item()
        return values[0].item(), values[-1].item(), error, error
    if not matrix.any():
        return 0.0, 0.0, 0.0, 0.0
    tall = matrix if matrix.size(0) >= matrix.size(1) else matrix.mT
    solve = require("scipy.linalg", extra="train").solve_triangular  # before .numpy(), which names no extra
    r = torch.linalg.qr(tall, mode="r").R.cpu().numpy()
    largest, residual = _largest(lambda x: r @ x, lambda x: r.T @ x, len(r))
    arithmetic = rounding * largest
    if abs(r.diagonal()).min() <= arithmetic:  # s_min is not above any diagonal entry of R
        return largest, 0.0, residual + arithmetic, arithmetic
    inverse, inverse_residual = _largest(lambda x: solve(r, x), lambda x: solve(r, x, trans="T"), len(r))
    smallest = 1 / inverse
    return largest, smallest, residual + arithmetic, smallest * inverse_residual / inverse + arithmetic


def _largest(apply: Callable[[Any], Any], transposed: Callable[[Any], Any], size: int) -> tuple[float, float]:
    """The largest singular value of an operator on `R^size`, and the residual of its triple."""
    sparse = require("scipy.sparse.linalg", extra="train")
    operator = sparse.LinearOperator((size, size), matvec=apply, rmatvec=transposed, dtype="float64")
    start = torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64).numpy()
    try:
        u, s, vt = sparse.svds(operator, k=1, which="LM", v0=start, tol=_TOLERANCE, maxiter=1000 * size)
    except sparse.ArpackError as error:
        raise RuntimeError(f"Lanczos did not converge on a matrix of size {size}: {error}") from error
    u, v = u[:, 0], vt[0]
    residual = max((part**2).sum() ** 0.5 for part in (apply(v) - s[0] * u, transposed(u) - s[0] * v))
    return float(s[0]), float(residual)
