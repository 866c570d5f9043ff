"""An independent implementation of the method, with which every path of the package is compared."""

import math

import torch
from torch import Tensor


def diagonal_product(rows: Tensor, *, eps: float = 1e-12, constant: bool = False, gain: Tensor | None = None) -> Tensor:
    """`C A` with the diagonal matrix `C` built in full, zero rows left as they are."""
    zero = (rows.detach() ** 2).sum(dim=-1) ** 0.5 <= eps
    norms = (torch.where(zero[..., None], torch.ones_like(rows), rows) ** 2).sum(dim=-1) ** 0.5
    c = torch.where(zero, torch.ones_like(norms), 1 / norms)
    out = torch.diag_embed(c.detach() if constant else c) @ rows
    return out if gain is None else out * gain[:, None, None]


def attention_rows(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: float | None = None) -> Tensor:
    """softmax(scale q k^T + mask) v, zero where a query may attend to nothing; heads of k and v repeated as needed."""
    groups = q.shape[-3] // k.shape[-3]
    k, v = (x.repeat_interleave(groups, dim=-3) for x in (k, v))
    scores = q @ k.transpose(-2, -1) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    nowhere = (scores == -math.inf).all(dim=-1, keepdim=True)
    return torch.where(nowhere, 0.0, torch.where(nowhere, 0.0, scores).softmax(dim=-1)) @ v


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Frobenius norm of the difference over that of what is expected."""
    return ((actual - expected).norm() / expected.norm().clamp_min(torch.finfo(expected.dtype).tiny)).item()
