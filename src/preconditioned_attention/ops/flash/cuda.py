"""PyTorch's flash attention on CUDA: no masks; dropout."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..inputs import AttentionInputs
from .autograd import KERNELS, FlashBackend, Kernel, KernelInputs, Options, Saved, materialize
from .unsupported import unsupported_by_cuda_kernel

_forward = torch.ops.aten._scaled_dot_product_flash_attention.default
_backward = torch.ops.aten._scaled_dot_product_flash_attention_backward.default

_MULTIPLE = 8  # the kernel needs head dimensions that are multiples of it


def _kernel_forward(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float, is_causal: bool, *, attn_mask: None, scale: float | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a, lse, _, _, _, _, seed, offset, _ = _forward(q, k, v, dropout_p, is_causal, False, scale=scale)
    return a, lse, seed, offset


def _kernel_backward(dout: Tensor, inputs: KernelInputs, saved: Saved, options: Options) -> tuple[Tensor, ...]:
    q, k, v, *_ = inputs
    out = materialize(saved.out, dout)
    no_packing = (None, None, q.shape[2], k.shape[2])
    dq, dk, dv = _backward(
        dout, q, k, v, out, saved.lse, *no_packing, options.dropout_p, options.is_causal, *saved.state,
        scale=options.scale,
    )  # fmt: skip
    return dq, dk, dv


KERNELS["flash_cuda"] = Kernel(_kernel_forward, _kernel_backward)


class FlashCUDA(FlashBackend):
    """The backend ``"flash"`` on CUDA."""

    kernel = compiled_kernel = "flash_cuda"

    def unsupported_reason(self, inputs: AttentionInputs) -> str | None:
        """Why the kernel cannot compute with ``inputs``; None if it can."""
        return unsupported_by_cuda_kernel(inputs, torch.backends.cuda.can_use_flash_attention)

    def attend(self, inputs: AttentionInputs) -> Tensor:
        """`C Attn(q, k, v)`.

        Head dimensions that are no multiple of 8 are padded with zeros, which change neither scores nor norms.
        """
        d = inputs.q.shape[-1]
        missing = -d % _MULTIPLE
        if missing == 0:
            return super().attend(inputs)
        q, k, v = (F.pad(x, (0, missing)) for x in (inputs.q, inputs.k, inputs.v))
        scale = 1 / math.sqrt(d) if inputs.scale is None else inputs.scale  # of the head dimension before padding
        return super().attend(replace(inputs, q=q, k=k, v=v, scale=scale))[..., :d]


FLASH_CUDA = FlashCUDA()
