"""cuDNN attention, re-normalised. See `rows` for the identity and `renormalised` for how it becomes a function."""

from __future__ import annotations

import torch
from torch import Tensor

from .call import Call
from .cuda import kernel_refusal
from .renormalised import Inputs, Options, Saved, renormalised, written_out

_forward = torch.ops.aten._scaled_dot_product_cudnn_attention.default
_backward = torch.ops.aten._scaled_dot_product_cudnn_attention_backward.default


def refusal(call: Call) -> str | None:
    """Why this backend cannot serve the call, or None."""
    if torch.compiler.is_compiling():
        return "PyTorch's answer whether cuDNN serves a call cannot be traced"
    if call.attn_mask is not None and call.attn_mask.requires_grad:
        return "the kernel returns no gradient of the mask"
    if call.attn_mask is not None and call.attn_mask.dtype == torch.bool:
        return (
            "with a finite number for what is masked out, as PyTorch hands it boolean masks, masked rows are not zero"
        )
    return kernel_refusal(call, torch.backends.cuda.can_use_cudnn_attention)


def _kernel_forward(inputs: Inputs, options: Options) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    q, k, v, bias = inputs
    a, lse, _, _, _, _, seed, offset, _ = _forward(
        q, k, v, bias, True, options.dropout_p, options.is_causal, False, scale=options.scale
    )
    return a, lse, seed, offset


def _kernel_backward(dout: Tensor, inputs: Inputs, saved: Saved, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, bias = inputs
    out = written_out(saved.out, dout)
    no_packing = (None, None, q.shape[2], k.shape[2])
    dq, dk, dv = _backward(
        dout, q, k, v, out, saved.lse, *saved.state, bias, *no_packing, options.dropout_p, options.is_causal,
        scale=options.scale,
    )  # fmt: skip
    return dq, dk, dv


attend = renormalised(_kernel_forward, _kernel_backward)
