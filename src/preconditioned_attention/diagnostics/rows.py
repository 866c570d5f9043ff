"""The spread of row norms, and the share of a matrix that is one common row."""

from __future__ import annotations

import torch
from torch import Tensor

from ..equilibration import row_norms
from .results import Measure
from .spectrum import check_matrices, normalized


def row_norm_spread(matrices: Tensor) -> Measure:
    """Standard deviation over mean of the norms of the rows that are not zero: ``(..., N, d) -> (...)``, in float64.

    0 where all rows have one length: a row scaling changes nothing there. Zero rows, from padding and masks, are not
    counted, because no row scaling changes them. 0 for a zero matrix too. Not defined where an entry is
    not finite.

    Raises:
        TypeError: complex or integer input.
        ValueError: fewer than two axes, or an empty matrix.
    """
    check_matrices(matrices)
    scaled, _, finite = normalized(matrices)
    norms = row_norms(scaled)
    counted = norms > 0
    number = counted.sum(dim=-1).clamp_min(1)
    mean = (norms.sum(dim=-1) / number).clamp_min(torch.finfo(torch.float64).tiny)
    deviations = torch.where(counted, norms / mean[..., None] - 1, 0.0)
    spread = (deviations.square().sum(dim=-1) / number).sqrt()
    return Measure(value=_where(finite, spread), defined=finite, method="row norms", precision=torch.float64)


def mean_direction_share(matrices: Tensor) -> Measure:
    """The share of a matrix that is one row: `N ||m||^2 / ||A||_F^2`, with the mean row `m`: ``(..., N, d) -> (...)``.

    Between 0 (the rows cancel) and 1 (all rows are the same): the part of the squared Frobenius norm that is left when
    every row is replaced by the mean row. Near 1 the rows are nearly parallel and equally long, and no row scaling
    makes them less parallel. In float64; not defined for a zero matrix and where an entry is not finite.

    Raises:
        TypeError: complex or integer input.
        ValueError: fewer than two axes, or an empty matrix.
    """
    check_matrices(matrices)
    scaled, _, finite = normalized(matrices)
    total = scaled.square().sum(dim=(-2, -1))
    share = scaled.size(-2) * scaled.mean(dim=-2).square().sum(dim=-1) / total
    defined = finite & (total > 0)
    return Measure(value=_where(defined, share), defined=defined, method="mean row", precision=torch.float64)


def _where(known: Tensor, values: Tensor) -> Tensor:
    return torch.where(known, values, torch.nan)
