"""The entropy of attention weights."""

from __future__ import annotations

import torch
from torch import Tensor

from .results import Measure
from .spectrum import check_matrices


def attention_entropy(weights: Tensor) -> Measure:
    """Mean over the rows of `-sum_j w_ij log w_ij`, in nats: ``(..., N, M) -> (...)``, in float64.

    0 where every token attends to one token, `log M` where every token attends uniformly. Rows of zeros (fully
    masked) are left out. Not defined where no row is left and where an entry is not finite.

    Args:
        weights: softmax matrices, before dropout: no entry negative, every row summing to 1 or all zero.

    Raises:
        TypeError: complex or integer input.
        ValueError: fewer than two axes, an empty matrix, or rows that are not distributions.
    """
    check_matrices(weights)
    given = weights.detach().to(torch.float64)
    finite = given.isfinite().all(dim=-1).all(dim=-1)
    given = torch.where(finite[..., None, None], given, 0.0)
    sums = given.sum(dim=-1)
    eps = torch.finfo(weights.dtype).eps
    # Each weight was rounded once in its dtype; before that softmax summed M of them in at least float32.
    _check_distributions(given, sums, 4 * eps + weights.size(-1) * min(eps, torch.finfo(torch.float32).eps))
    live = sums > 0
    count = live.sum(dim=-1)
    entropy = torch.special.entr(given).sum(dim=-1).sum(dim=-1) / count
    defined = finite & (count > 0)
    value = torch.where(defined, entropy, torch.nan)
    return Measure(value=value, defined=defined, method="mean over rows", precision=torch.float64)


def _check_distributions(weights: Tensor, sums: Tensor, tolerance: float) -> None:
    off = torch.where(sums > 0, (sums - 1).abs(), 0.0)
    if (weights < 0).any() or (off > tolerance).any():
        raise ValueError(
            "weights must be softmax matrices before dropout: no entry negative, every row summing to 1 or all zero; "
            f"got a smallest entry of {weights.min().item():.3g} and a row that is off by {off.max().item():.3g}"
        )
