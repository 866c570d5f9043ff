"""Sequences of different lengths, and an independent implementation of attention within each."""

from itertools import pairwise

import torch
from torch import Tensor

from tests.helpers.explicit import attention_rows, diagonal_product

QUERIES, KEYS = [3, 0, 5, 2, 0, 4, 2], [3, 2, 7, 0, 0, 4, 1]  # equal, longer, shorter, none on either side


def cumulative(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def ragged(
    heads: int = 4, shared: int = 2, d: int = 8, dtype: torch.dtype = torch.float64
) -> tuple[list[Tensor], list[Tensor]]:
    """q, k and v packed, and where the sequences begin."""
    tokens = [(sum(QUERIES), heads), (sum(KEYS), shared), (sum(KEYS), shared)]
    qkv = [torch.randn(*shape, d, dtype=torch.float64).to(dtype).requires_grad_() for shape in tokens]
    return qkv, [cumulative(QUERIES), cumulative(KEYS)]


def explicit_ragged(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    gradient: str = "full",
    gain: Tensor | None = None,
    eps: float = 1e-12,
) -> Tensor:
    outs = []
    for (begin, end), (first, last) in zip(pairwise(cu_seq_q.tolist()), pairwise(cu_seq_k.tolist()), strict=True):
        part = [x.transpose(0, 1) for x in (q[begin:end], k[first:last], v[first:last])]
        queries, keys = end - begin, last - first
        mask = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries) if is_causal else None
        rows = attention_rows(*part, mask, scale)
        outs.append(diagonal_product(rows, constant=gradient == "stop", gain=gain, eps=eps).transpose(0, 1))
    return torch.cat(outs)
