"""Sequences packed into one tensor: their views as dense tensors, their boundaries, and attention one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from .inputs import AttentionInputs, PackedInputs


def as_dense(x: Tensor) -> Tensor:
    """(T, H, d) as (1, H, T, d): a view."""
    return x.transpose(0, 1).unsqueeze(0)


def as_packed(x: Tensor) -> Tensor:
    """The inverse of :func:`as_dense`."""
    return x.squeeze(0).transpose(0, 1)


def as_one_sequence(packed: PackedInputs) -> AttentionInputs:
    """Dense inputs with the same tensors, (1, H, T, d): a kernel that supports these supports the packed ones.

    Without the causal mask, which the packed kernels align themselves.
    """
    q, k, v = (as_dense(x) for x in (packed.inputs.q, packed.inputs.k, packed.inputs.v))
    return replace(packed.inputs, q=q, k=k, v=v, is_causal=False)


def one_by_one(packed: PackedInputs, attend: Callable[[AttentionInputs], Tensor]) -> Tensor:
    """Every sequence by ``attend``, as dense inputs of its own. On a GPU this waits for the lengths.

    Raises:
        ValueError: the boundaries do not fit, or ``attend`` does not support one of the sequences.
    """
    inputs = packed.inputs
    queries = boundaries(packed.cu_seq_q, len(inputs.q), "q", packed.max_q)
    keys = boundaries(packed.cu_seq_k, len(inputs.k), "k", packed.max_k)
    spans = zip(queries, keys, strict=True)
    outs = [as_packed(attend(_sequence(inputs, slice(*mine), slice(*theirs)))) for mine, theirs in spans]
    return torch.cat(outs) if outs else inputs.q[..., :1].expand(-1, -1, inputs.v.shape[-1])  # no token then


def _sequence(inputs: AttentionInputs, mine: slice, theirs: slice) -> AttentionInputs:
    q, k, v = as_dense(inputs.q[mine]), as_dense(inputs.k[theirs]), as_dense(inputs.v[theirs])
    queries, keys = q.shape[2], k.shape[2]
    if not inputs.is_causal or queries == keys:
        return replace(inputs, q=q, k=k, v=v)
    lower_right = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
    return replace(inputs, q=q, k=k, v=v, attn_mask=lower_right, is_causal=False)


def boundaries(cu_seq: Tensor, tokens: int, name: str, longest: int | None = None) -> list[tuple[int, int]]:
    """Where each sequence begins and ends. On a GPU this waits for the device.

    Raises:
        ValueError: the positions are not in order, or a sequence is longer than ``longest``.
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
