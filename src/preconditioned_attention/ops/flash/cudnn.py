"""PyTorch's cuDNN attention: additive masks without a gradient; eager mode."""

from __future__ import annotations

import torch
from torch import Tensor

from ..inputs import AttentionInputs
from .autograd import KERNELS, FlashBackend, Kernel, KernelInputs, Options, Saved, materialize
from .unsupported import unsupported_by_cuda_kernel

_forward = torch.ops.aten._scaled_dot_product_cudnn_attention.default
_backward = torch.ops.aten._scaled_dot_product_cudnn_attention_backward.default


def _kernel_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float,
    is_causal: bool,
    *,
    attn_mask: Tensor | None,
    scale: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a, lse, _, _, _, _, seed, offset, _ = _forward(
        q, k, v, attn_mask, True, dropout_p, is_causal, False, scale=scale
    )  # fmt: skip
    return a, lse, seed, offset


def _kernel_backward(dout: Tensor, inputs: KernelInputs, saved: Saved, options: Options) -> tuple[Tensor, ...]:
    q, k, v, bias, *_ = inputs
    out = materialize(saved.out, dout)
    no_packing = (None, None, q.shape[2], k.shape[2])
    dq, dk, dv = _backward(
        dout, q, k, v, out, saved.lse, *saved.state, bias, *no_packing, options.dropout_p, options.is_causal,
        scale=options.scale,
    )  # fmt: skip
    return dq, dk, dv


KERNELS["cudnn"] = Kernel(_kernel_forward, _kernel_backward)


class CuDNN(FlashBackend):
    """The backend ``"cudnn"``."""

    kernel = compiled_kernel = "cudnn"

    def unsupported_reason(self, inputs: AttentionInputs) -> str | None:
        """Why the kernel cannot compute with ``inputs``; None if it can."""
        if torch.compiler.is_compiling():
            return "PyTorch's check whether cuDNN supports a call is not traceable"
        if inputs.attn_mask is not None and inputs.attn_mask.requires_grad:
            return "the kernel returns no gradient of the mask"
        if inputs.attn_mask is not None and inputs.attn_mask.dtype == torch.bool:
            return "PyTorch gives it boolean masks as finite numbers, with which fully masked rows are not zero"
        return unsupported_by_cuda_kernel(inputs, torch.backends.cuda.can_use_cudnn_attention)


CUDNN = CuDNN()
