"""CUDA memory-efficient attention, re-normalised: the kernel that takes masks and returns their gradient.

See `rows` for the identity and `renormalised` for how it becomes a function.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .call import Call
from .cuda import kernel_refusal
from .renormalised import Inputs, Options, Saved, additive, renormalised, written_out

_forward = torch.ops.aten._scaled_dot_product_efficient_attention.default
_backward = torch.ops.aten._scaled_dot_product_efficient_attention_backward.default

_ALIGNMENT = 16  # entries of a mask's row, to which the kernel wants every row to begin


def refusal(call: Call) -> str | None:
    """Why this backend cannot serve the call, or None."""
    return kernel_refusal(call, torch.backends.cuda.can_use_efficient_attention)


def _kernel_forward(inputs: Inputs, options: Options) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    q, k, v, bias = inputs
    a, lse, seed, offset = _forward(q, k, v, bias, True, options.dropout_p, options.is_causal, scale=options.scale)
    return a, lse, seed, offset


def _kernel_backward(dout: Tensor, inputs: Inputs, saved: Saved, options: Options) -> tuple[Tensor | None, ...]:
    q, k, v, bias = inputs
    out = written_out(saved.out, dout)
    dq, dk, dv, dbias = _backward(
        dout, q, k, v, bias, out, saved.lse, *saved.state, options.dropout_p, list(saved.wanted),
        options.is_causal, scale=options.scale,
    )  # fmt: skip
    return dq, dk, dv, dbias if saved.wanted[3] else None


_attend = renormalised(_kernel_forward, _kernel_backward)


def attend(call: Call) -> Tensor:
    """`C A`; the call must be one that :func:`refusal` has nothing against."""
    mask = additive(call.attn_mask, call.q.dtype)
    if mask is None:
        return _attend(call)
    queries, keys = call.q.shape[2], call.k.shape[2]
    missing = -keys % _ALIGNMENT
    if missing:
        mask = F.pad(mask, (0, missing))[..., :keys]
    return _attend(replace(call, attn_mask=mask.expand(*call.q.shape[:2], queries, keys)))
