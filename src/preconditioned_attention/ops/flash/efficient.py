"""PyTorch's memory-efficient attention on CUDA, the kernel that takes masks and returns their gradient."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..inputs import AttentionInputs
from .autograd import KERNELS, FlashBackend, Kernel, KernelInputs, Options, Saved, additive, materialize
from .unsupported import unsupported_by_cuda_kernel

_forward = torch.ops.aten._scaled_dot_product_efficient_attention.default
_backward = torch.ops.aten._scaled_dot_product_efficient_attention_backward.default

_ALIGNMENT = 16  # entries: the kernel needs every row of a mask to begin at a multiple of it


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
    a, lse, seed, offset = _forward(q, k, v, attn_mask, True, dropout_p, is_causal, scale=scale)
    return a, lse, seed, offset


def _kernel_backward(dout: Tensor, inputs: KernelInputs, saved: Saved, options: Options) -> tuple[Tensor | None, ...]:
    q, k, v, bias, *_ = inputs
    out = materialize(saved.out, dout)
    dq, dk, dv, dbias = _backward(
        dout, q, k, v, bias, out, saved.lse, *saved.state, options.dropout_p, list(saved.wanted),
        options.is_causal, scale=options.scale,
    )  # fmt: skip
    return dq, dk, dv, dbias if saved.wanted[3] else None


KERNELS["efficient"] = Kernel(_kernel_forward, _kernel_backward)


class Efficient(FlashBackend):
    """The backend ``"efficient"``."""

    kernel = compiled_kernel = "efficient"

    def unsupported_reason(self, inputs: AttentionInputs) -> str | None:
        """Why the kernel cannot compute with ``inputs``; None if it can."""
        return unsupported_by_cuda_kernel(inputs, torch.backends.cuda.can_use_efficient_attention)

    def attend(self, inputs: AttentionInputs) -> Tensor:
        """`C Attn(q, k, v)`, with a mask that is aligned in memory and has the shape of the scores."""
        if inputs.attn_mask is None:
            return super().attend(inputs)
        mask = additive(inputs.attn_mask, inputs.q.dtype)
        queries, keys = inputs.q.shape[2], inputs.k.shape[2]
        missing = -keys % _ALIGNMENT
        if missing:
            mask = F.pad(mask, (0, missing))[..., :keys]
        return super().attend(replace(inputs, attn_mask=mask.expand(*inputs.q.shape[:2], queries, keys)))


EFFICIENT = Efficient()
