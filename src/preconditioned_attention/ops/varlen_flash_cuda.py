"""CUDA flash attention over packed sequences, re-normalised: the kernel that `torch.nn.attention.varlen` uses.

Its causal mask is aligned to the lower right of each sequence.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .renormalised import written_out
from .varlen_call import Packed
from .varlen_renormalised import PackedInputs, PackedOptions, PackedSaved, renormalised_packed

_forward = torch.ops.aten._flash_attention_forward.default
_backward = torch.ops.aten._flash_attention_backward.default

_MULTIPLE = 8  # of which the kernel wants the head dimension to be


def _kernel_forward(inputs: PackedInputs, options: PackedOptions) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    max_q, max_k, (is_causal, scale, dropout_p, _) = options
    a, lse, seed, offset, _ = _forward(*inputs, max_q, max_k, dropout_p, is_causal, False, scale=scale)
    return a, lse, seed, offset


def _kernel_backward(
    dout: Tensor, inputs: PackedInputs, saved: PackedSaved, options: PackedOptions
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, *cu_seqs = inputs
    max_q, max_k, (is_causal, scale, dropout_p, _) = options
    out = written_out(saved.out, dout)
    dq, dk, dv = _backward(
        dout,
        q,
        k,
        v,
        out,
        saved.lse,
        *cu_seqs,
        max_q,
        max_k,
        dropout_p,
        is_causal,
        *saved.state,
        scale=scale,
    )
    return dq, dk, dv


_attend = renormalised_packed(_kernel_forward, _kernel_backward)


def attend(packed: Packed) -> Tensor:
    """`C A` within each sequence.

    Head dimensions that are no multiple of 8 are filled up with zeros, which change neither scores nor norms.
    """
    call, d = packed.call, packed.call.q.shape[-1]
    missing = -d % _MULTIPLE
    if missing == 0:
        return _attend(packed)
    q, k, v = (F.pad(x, (0, missing)) for x in (call.q, call.k, call.v))
    scale = 1 / math.sqrt(d) if call.scale is None else call.scale  # of the head dimension before the filling
    return _attend(replace(packed, call=replace(call, q=q, k=k, v=v, scale=scale)))[..., :d]
