"""Packed sequences one after the other, each as a dense call of its own: serves what no packed kernel does."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..config import Backend
from .api import attend as attend_dense
from .call import Call
from .varlen_call import Packed, as_dense, as_packed, boundaries


def attend(packed: Packed, backend: Backend) -> Tensor:
    """`C A` within each sequence, by ``backend``. On a GPU this waits for the lengths.

    Raises:
        ValueError: ``backend`` cannot serve one of the sequences, or the boundaries do not fit.
    """
    call = packed.call
    queries = boundaries(packed.cu_seq_q, len(call.q), "q", packed.max_q)
    keys = boundaries(packed.cu_seq_k, len(call.k), "k", packed.max_k)
    outs = [
        as_packed(attend_dense(_sequence(call, slice(*mine), slice(*theirs)), backend))
        for mine, theirs in zip(queries, keys, strict=True)
    ]
    return torch.cat(outs) if outs else call.q[..., :1].expand(-1, -1, call.v.shape[-1])  # no token then


def _sequence(call: Call, mine: slice, theirs: slice) -> Call:
    q, k, v = as_dense(call.q[mine]), as_dense(call.k[theirs]), as_dense(call.v[theirs])
    queries, keys = q.shape[2], k.shape[2]
    if not call.is_causal or queries == keys:
        return replace(call, q=q, k=k, v=v)
    lower_right = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
    return replace(call, q=q, k=k, v=v, attn_mask=lower_right, is_causal=False)
