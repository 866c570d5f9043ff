"""Nested tensors: a batch of sequences of different lengths, (B, H, j, d) as `scaled_dot_product_attention` takes them.

The jagged layout holds a packed tensor, for the packed kernels. The strided layout, the older one, is computed sequence
by sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .inputs import AttentionInputs, PackedInputs

AttendDense = Callable[[AttentionInputs], Tensor]
AttendPacked = Callable[[PackedInputs], Tensor]


def attend_nested(inputs: AttentionInputs, attend_dense: AttendDense, attend_packed: AttendPacked) -> Tensor:
    """`C A` within each sequence, as a nested tensor of the layout of q.

    Raises:
        ValueError: q, k and v are not nested alike, or there is a mask.
    """
    tensors = {"q": inputs.q, "k": inputs.k, "v": inputs.v}
    kinds = {name: str(x.layout) if x.is_nested else "not nested" for name, x in tensors.items()}
    if len(set(kinds.values())) > 1:
        raise ValueError(f"q, k and v must be nested tensors of one layout; got {kinds}")
    if inputs.attn_mask is not None:
        raise ValueError("attn_mask must be None with nested tensors: they need no padding mask. is_causal may be True")
    for name, x in tensors.items():
        if x.dim() != 4:
            raise ValueError(f"{name} must have four axes, (B, H, tokens, head_dim), where it is nested; got {x.dim()}")
    sizes = {name: x.size(0) for name, x in tensors.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"nested q, k and v must hold as many sequences; got {sizes}")
    if inputs.q.layout == torch.jagged:
        return _attend_jagged(inputs, attend_packed)
    parts = zip(inputs.q.unbind(), inputs.k.unbind(), inputs.v.unbind(), strict=True)
    outs = [attend_dense(replace(inputs, q=q[None], k=k[None], v=v[None]))[0] for q, k, v in parts]
    return torch.nested.as_nested_tensor(outs, layout=torch.strided)


def _attend_jagged(inputs: AttentionInputs, attend_packed: AttendPacked) -> Tensor:
    q, k, v = (_tokens_first(x, name) for name, x in (("q", inputs.q), ("k", inputs.k), ("v", inputs.v)))
    if not _same_lengths(k, v):
        raise ValueError(f"nested k and v must have the same lengths; got offsets {k.offsets()} and {v.offsets()}")
    if inputs.is_causal and not _same_lengths(q, k):
        raise ValueError(
            "is_causal=True needs nested q and k of the same lengths: kernels differ in how they align the mask "
            "otherwise. preconditioned_varlen_attention aligns it to the lower right"
        )
    packed = PackedInputs(
        inputs=replace(inputs, q=q.values(), k=k.values(), v=v.values()),
        cu_seq_q=q.offsets().to(torch.int32),
        cu_seq_k=k.offsets().to(torch.int32),
        max_q=_longest(q),
        max_k=_longest(k),
    )
    out = attend_packed(packed)
    jagged = torch.nested.nested_tensor_from_jagged(out, offsets=q.offsets(), max_seqlen=q._maybe_max_seqlen)
    return jagged.transpose(1, 2)


def _tokens_first(x: Any, name: str) -> Any:  # of a class that PyTorch does not make public
    """(B, j, H, d) without holes between the sequences."""
    if x._ragged_idx != 2:
        raise ValueError(
            f"{name} must have its sequences along axis 2, (B, H, tokens, head_dim); they lie along axis "
            f"{x._ragged_idx}. From (B, tokens, H, head_dim) it is {name}.transpose(1, 2)"
        )
    x = x.transpose(1, 2)
    return x if x.lengths() is None else x.contiguous()


def _longest(x: Any) -> int:
    """The longest length, or more; GPU kernels need it exact, and PyTorch caches it."""
    longest: int = len(x.values()) if x.device.type == "cpu" else x._get_max_seqlen()
    return longest


def _same_lengths(a: Any, b: Any) -> bool:
    """Tensors made from the same offsets have the same symbol as their size; of others the offsets are compared."""
    return a.size(1) == b.size(1) or torch.equal(a.offsets(), b.offsets())
