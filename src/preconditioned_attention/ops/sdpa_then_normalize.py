"""`C A` as two steps: whatever kernel `scaled_dot_product_attention` picks, then the rows are equilibrated."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .inputs import AttentionInputs
from .replaced import SDPA
from .rows.autograd import equilibrate
from .tracing import guard_or_false, is_recorded


class SdpaThenNormalize:
    """The backend ``"composition"``; it supports what plain attention supports."""

    def unsupported_reason(self, inputs: AttentionInputs) -> None:
        """None."""

    def attend(self, inputs: AttentionInputs) -> Tensor:
        """As :func:`sdpa_then_normalize`, for tensors that fit each other."""
        inputs.check_shapes()
        return sdpa_then_normalize(inputs)


SDPA_THEN_NORMALIZE = SdpaThenNormalize()


def sdpa_then_normalize(inputs: AttentionInputs) -> Tensor:
    """`equilibrate(scaled_dot_product_attention(q, k, v))`."""
    if _is_headless(inputs):
        inputs = _without_keys(inputs)
    attend = SDPA if inputs.gathered else F.scaled_dot_product_attention
    out = attend(
        inputs.q,
        inputs.k,
        inputs.v,
        attn_mask=inputs.attn_mask,
        dropout_p=inputs.dropout_p,
        is_causal=inputs.is_causal,
        scale=inputs.scale,
        enable_gqa=inputs.enable_gqa,
    )
    if is_recorded():
        out = _in_one_layout(out)
    return equilibrate(out, gradient=inputs.gradient, eps=inputs.eps, gain=inputs.gain)


def _is_headless(inputs: AttentionInputs) -> bool:
    q, k, v = inputs.q, inputs.k, inputs.v
    if q.dim() < 3 or k.dim() < 3 or v.dim() < 3:
        return False
    shared = guard_or_false(k.shape[-3] == 0) or guard_or_false(v.shape[-3] == 0)
    return shared and (inputs.enable_gqa or guard_or_false(q.shape[-3] == 0))


def _without_keys(inputs: AttentionInputs) -> AttentionInputs:
    """No key head as one without keys: PyTorch divides by the number of heads, which up to 2.11 ends the process."""
    k, v = (x.sum(dim=-3, keepdim=True)[..., :0, :] for x in (inputs.k, inputs.v))
    return replace(inputs, k=k, v=v, attn_mask=None)


def _in_one_layout(rows: Tensor) -> Tensor:
    """A copy in which merging the heads is a view, whichever kernel attends where the recorded program runs.

    Kernels and decompositions lay their results out differently, and views that were recorded behind one of them fail
    behind another.
    """
    if rows.dim() < 3:
        return rows
    return rows.transpose(-3, -2).clone(memory_format=torch.contiguous_format).transpose(-3, -2)
