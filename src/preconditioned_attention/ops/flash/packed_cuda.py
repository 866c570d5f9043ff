"""PyTorch's flash attention over packed sequences on CUDA, the kernel that `torch.nn.attention.varlen` uses.

Its causal mask is aligned to the lower right of each sequence.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..inputs import PackedInputs
from ..packed import as_one_sequence
from .autograd import KERNELS, Kernel, KernelInputs, Options, PackedFlashBackend, Saved, materialize
from .unsupported import unsupported_by_cuda_kernel

_forward = torch.ops.aten._flash_attention_forward.default
_backward = torch.ops.aten._flash_attention_backward.default

_MULTIPLE = 8  # the kernel needs head dimensions that are multiples of it


def _kernel_forward(inputs: KernelInputs, options: Options) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    q, k, v, _, *cu_seqs = inputs
    a, lse, seed, offset, _ = _forward(
        q, k, v, *cu_seqs, options.max_q, options.max_k, options.dropout_p, options.is_causal, False,
        scale=options.scale,
    )  # fmt: skip
    return a, lse, seed, offset


def _kernel_backward(dout: Tensor, inputs: KernelInputs, saved: Saved, options: Options) -> tuple[Tensor, ...]:
    q, k, v, _, *cu_seqs = inputs
    out = materialize(saved.out, dout)
    dq, dk, dv = _backward(
        dout, q, k, v, out, saved.lse, *cu_seqs, options.max_q, options.max_k, options.dropout_p, options.is_causal,
        *saved.state, scale=options.scale,
    )  # fmt: skip
    return dq, dk, dv


KERNELS["packed_flash_cuda"] = Kernel(_kernel_forward, _kernel_backward)


class PackedFlashCUDA(PackedFlashBackend):
    """The packed backend ``"flash"`` on CUDA."""

    kernel = "packed_flash_cuda"

    def unsupported_reason(self, packed: PackedInputs) -> str | None:
        """Why the kernel cannot compute with ``packed``; None if it can."""
        return unsupported_by_cuda_kernel(as_one_sequence(packed), torch.backends.cuda.can_use_flash_attention)

    def attend(self, packed: PackedInputs) -> Tensor:
        """`C Attn(q, k, v)` within each sequence."""
        return super().attend(_padded(packed))[..., : packed.inputs.v.shape[-1]]

    def attend_plain(self, packed: PackedInputs) -> Tensor:
        """`Attn(q, k, v)` within each sequence, by an operator that PyTorch differentiates."""
        packed, d = _padded(packed), packed.inputs.v.shape[-1]
        inputs = packed.inputs
        a: Tensor = _forward(
            inputs.q, inputs.k, inputs.v, packed.cu_seq_q, packed.cu_seq_k, packed.max_q, packed.max_k,
            inputs.dropout_p, inputs.is_causal, False, scale=inputs.scale,
        )[0]  # fmt: skip
        return a[..., :d]


def _padded(packed: PackedInputs) -> PackedInputs:
    """Head dimensions that are no multiple of 8, padded with zeros, which change neither scores nor norms."""
    inputs, d = packed.inputs, packed.inputs.q.shape[-1]
    missing = -d % _MULTIPLE
    if missing == 0:
        return packed
    q, k, v = (F.pad(x, (0, missing)) for x in (inputs.q, inputs.k, inputs.v))
    scale = 1 / math.sqrt(d) if inputs.scale is None else inputs.scale  # of the head dimension before padding
    return replace(packed, inputs=replace(inputs, q=q, k=k, v=v, scale=scale))


PACKED_FLASH_CUDA = PackedFlashCUDA()
