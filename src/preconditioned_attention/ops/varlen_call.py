"""Sequences of different lengths in one tensor: what every way to attend within each of them is handed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from .call import Call


@dataclass(frozen=True, kw_only=True)
class Packed:
    """Sequences laid end to end along the first axis, and where each begins.

    ``call`` has q of shape (T_q, H, d), k and v of (T_k, H_kv, d), and no mask. Its ``is_causal`` is aligned to the
    lower right of every sequence, as flash attention aligns it: the last query attends to the last key.
    """

    call: Call
    cu_seq_q: Tensor  # (sequences + 1,), int32: where each sequence's queries begin, and T_q
    cu_seq_k: Tensor
    max_q: int
    max_k: int

    def as_one_sequence(self) -> Call:
        """A dense call of the same tensors, (1, H, T, d): what backends say of it, they say of the packed one."""
        q, k, v = (as_dense(x) for x in (self.call.q, self.call.k, self.call.v))
        return replace(self.call, q=q, k=k, v=v, is_causal=False)


def as_dense(x: Tensor) -> Tensor:
    """(T, H, d) as (1, H, T, d): a view."""
    return x.transpose(0, 1).unsqueeze(0)


def as_packed(x: Tensor) -> Tensor:
    """The inverse of :func:`as_dense`."""
    return x.squeeze(0).transpose(0, 1)


def one_by_one(packed: Packed, attend: Callable[[Call], Tensor]) -> Tensor:
    """Every sequence by ``attend``, as a dense call of its own. On a GPU this waits for the lengths.

    Raises:
        ValueError: the boundaries do not fit, or ``attend`` cannot serve one of the sequences.
    """
    call = packed.call
    queries = boundaries(packed.cu_seq_q, len(call.q), "q", packed.max_q)
    keys = boundaries(packed.cu_seq_k, len(call.k), "k", packed.max_k)
    spans = zip(queries, keys, strict=True)
    outs = [as_packed(attend(_sequence(call, slice(*mine), slice(*theirs)))) for mine, theirs in spans]
    return torch.cat(outs) if outs else call.q[..., :1].expand(-1, -1, call.v.shape[-1])  # no token then


def _sequence(call: Call, mine: slice, theirs: slice) -> Call:
    q, k, v = as_dense(call.q[mine]), as_dense(call.k[theirs]), as_dense(call.v[theirs])
    queries, keys = q.shape[2], k.shape[2]
    if not call.is_causal or queries == keys:
        return replace(call, q=q, k=k, v=v)
    lower_right = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
    return replace(call, q=q, k=k, v=v, attn_mask=lower_right, is_causal=False)


def boundaries(cu_seq: Tensor, tokens: int, name: str, longest: int | None = None) -> list[tuple[int, int]]:
    """Where each sequence begins and ends. On a GPU this waits for the device.

    Raises:
        ValueError: the positions are none, or a sequence is longer than ``longest``.
    """
    at: list[int] = cu_seq.tolist()
    if at[0] != 0 or at[-1] != tokens:
        raise ValueError(f"cu_seq_{name} must start at 0 and end at the number of tokens, {tokens}; got {at}")
    spans = list(pairwise(at))
    if any(begin > end for begin, end in spans):
        raise ValueError(f"cu_seq_{name} must not decrease; got {at}")
    if longest is not None and any(end - begin > longest for begin, end in spans):
        most = max(end - begin for begin, end in spans)
        raise ValueError(f"max_{name} must be at least the length of the longest sequence, {most}; got {longest}")
    return spans
