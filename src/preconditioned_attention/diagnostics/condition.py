"""Condition numbers and row norms of batches of matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from ..equilibration import row_norms


def condition_number(matrices: Tensor) -> Tensor:
    """`kappa(A) = s_max / s_min` over the `min(N, d)` singular values, by a float64 SVD: ``(..., N, d) -> (...)``.

    inf where the smallest singular value is zero. A value above about 1e7 for a matrix that was computed in float32
    (1e3 in float16, 1e2 in bfloat16) says that it is singular to that precision, not how singular. A zero matrix has
    no condition number: NaN.

    Raises:
        ValueError: fewer than two axes, or an empty matrix.
    """
    if matrices.dim() < 2 or 0 in matrices.shape[-2:]:
        raise ValueError(f"matrices must have shape (..., N, d) with N, d >= 1; got {tuple(matrices.shape)}")
    singular_values = torch.linalg.svdvals(matrices.detach().to(torch.float64))
    return singular_values[..., 0] / singular_values[..., -1]


def row_norm_spread(matrices: Tensor) -> Tensor:
    """Standard deviation over mean of the row norms: ``(..., N, d) -> (...)``, in float64.

    0 where all rows are equally long: there a row scaling has nothing to act on. 0 for a zero matrix too.

    Raises:
        ValueError: fewer than two axes, or an empty matrix.
    """
    if matrices.dim() < 2 or 0 in matrices.shape[-2:]:
        raise ValueError(f"matrices must have shape (..., N, d) with N, d >= 1; got {tuple(matrices.shape)}")
    norms = row_norms(matrices.detach().to(torch.float64))
    return norms.std(dim=-1, correction=0) / norms.mean(dim=-1).clamp_min(torch.finfo(torch.float64).tiny)
