"""CPU flash attention over packed sequences, re-normalised: the dense kernel once per sequence, the row work once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .varlen_call import as_dense, as_packed, boundaries
from .varlen_renormalised import PackedInputs, PackedOptions, PackedSaved, renormalised_packed

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def _sequences(inputs: PackedInputs, options: PackedOptions) -> Iterator[tuple[slice, slice]]:
    """Queries and keys of every sequence that has both; the rows and gradients of the others are zero."""
    queries = boundaries(inputs.cu_seq_q, len(inputs.q), "q", options.max_q)
    keys = boundaries(inputs.cu_seq_k, len(inputs.k), "k", options.max_k)
    for (q_begin, q_end), (k_begin, k_end) in zip(queries, keys, strict=True):
        if q_begin < q_end and k_begin < k_end:
            yield slice(q_begin, q_end), slice(k_begin, k_end)


def _causality(queries: int, keys: int, dtype: torch.dtype, is_causal: bool) -> tuple[bool, Tensor | None]:
    """The kernel's own causal mask is aligned to the upper left: other lengths need one that is written out."""
    if not is_causal or queries == keys:
        return is_causal, None
    return False, torch.full((queries, keys), -torch.inf, dtype=dtype).triu(keys - queries + 1)


def _kernel_forward(inputs: PackedInputs, options: PackedOptions) -> tuple[Tensor, Tensor]:
    q, k, v = (as_dense(x) for x in inputs[:3])
    (tokens, heads, d), wide = inputs.q.shape, torch.promote_types(q.dtype, torch.float32)
    a = q.new_zeros(tokens, heads, d)
    lse = q.new_zeros(tokens, heads, dtype=wide).T  # as the kernel lays it out
    is_causal, scale, _ = options.shared
    for mine, theirs in _sequences(inputs, options):
        part = q[:, :, mine], k[:, :, theirs], v[:, :, theirs]
        upper_left, mask = _causality(part[0].shape[2], part[1].shape[2], q.dtype, is_causal)
        out, part_lse = _forward(*part, 0.0, upper_left, attn_mask=mask, scale=scale)
        a[mine] = as_packed(out)
        lse[:, mine] = part_lse.squeeze(0)
    return a, lse


def _kernel_backward(
    dout: Tensor, inputs: PackedInputs, saved: PackedSaved, options: PackedOptions
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (x.new_zeros(x.shape) for x in inputs[:3])
    q, k, v, do, out = (as_dense(x) for x in (*inputs[:3], dout, saved.out))
    is_causal, scale, _ = options.shared
    for mine, theirs in _sequences(inputs, options):
        part = q[:, :, mine], k[:, :, theirs], v[:, :, theirs]
        upper_left, mask = _causality(part[0].shape[2], part[1].shape[2], q.dtype, is_causal)
        rows = out[:, :, mine], saved.lse[None, :, mine]
        grads = _backward(do[:, :, mine], *part, *rows, 0.0, upper_left, attn_mask=mask, scale=scale)
        dq[mine], dk[theirs], dv[theirs] = (as_packed(grad) for grad in grads)
    return dq, dk, dv


attend = renormalised_packed(_kernel_forward, _kernel_backward)
