"""PyTorch's flash attention on the CPU, the kernel that plain attention uses."""

from __future__ import annotations

import torch
from torch import Tensor

from ..inputs import AttentionInputs
from .autograd import KERNELS, FlashBackend, Kernel, KernelInputs, Options, Saved
from .one_key import LOW_PRECISION, masked_rows
from .unsupported import unsupported_by_cpu_flash

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


# Compilers get operators of ours. Backward: Inductor copies the arguments of PyTorch's into one layout; with the tag
# `needs_exact_strides` it does not. Forward: where PyTorch's is decomposed, as by `core_aten_decompositions`, its
# second result becomes the attention weights; and PyTorch 2.11 says that the row constants of float64 are float32.
_LIBRARY = torch.library.Library("preconditioned_attention", "FRAGMENT")
_LIBRARY.define(
    "flash_cpu_forward(Tensor q, Tensor k, Tensor v, bool is_causal, Tensor? bias, float? scale) -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_LIBRARY.define(
    "flash_cpu_backward(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor? out, Tensor lse, bool is_causal, "
    "Tensor? bias, float? scale) -> (Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides),
)


def _flash_forward(
    q: Tensor, k: Tensor, v: Tensor, is_causal: bool, bias: Tensor | None, scale: float | None
) -> tuple[Tensor, Tensor]:
    a, lse = _forward(q, k, v, 0.0, is_causal, attn_mask=bias, scale=scale)
    return a, lse


def _flash_forward_fake(
    q: Tensor, k: Tensor, v: Tensor, is_causal: bool, bias: Tensor | None, scale: float | None
) -> tuple[Tensor, Tensor]:
    a, lse = _flash_forward(q, k, v, is_causal, bias, scale)
    return a, lse.to(torch.promote_types(q.dtype, torch.float32))


def _flash_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor | None,
    lse: Tensor,
    is_causal: bool,
    bias: Tensor | None,
    scale: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Without ``out`` it is zero: one row of zeros, which the kernel takes for all rows."""
    if out is None:
        out = dout.new_zeros(dout.shape[-1]).expand(dout.shape)
    if bias is not None and v.dtype in LOW_PRECISION:
        out = masked_rows(out, v, bias)
    dq, dk, dv = _backward(dout, q, k, v, out, lse, 0.0, is_causal, attn_mask=bias, scale=scale)
    return dq, dk, dv


def _flash_backward_fake(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor | None,
    lse: Tensor,
    is_causal: bool,
    bias: Tensor | None,
    scale: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The shapes and layouts alone: `masked_rows` reads values."""
    out = dout.new_zeros(dout.shape[-1]).expand(dout.shape) if out is None else out
    dq, dk, dv = _backward(dout, q, k, v, out, lse, 0.0, is_causal, attn_mask=bias, scale=scale)
    return dq, dk, dv


_LIBRARY.impl("flash_cpu_forward", _flash_forward, "CPU")
_LIBRARY.impl("flash_cpu_backward", _flash_backward, "CPU")
torch.library.register_fake("preconditioned_attention::flash_cpu_forward", _flash_forward_fake, lib=_LIBRARY)
torch.library.register_fake("preconditioned_attention::flash_cpu_backward", _flash_backward_fake, lib=_LIBRARY)


def _kernel_backward(dout: Tensor, inputs: KernelInputs, saved: Saved, options: Options) -> tuple[Tensor, ...]:
    q, k, v, bias, *_ = inputs
    return _flash_backward(dout, q, k, v, saved.out, saved.lse, options.is_causal, bias, options.scale)


def _compiled_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float,
    is_causal: bool,
    *,
    attn_mask: Tensor | None,
    scale: float | None,
) -> tuple[Tensor, Tensor]:
    a, lse = torch.ops.preconditioned_attention.flash_cpu_forward.default(q, k, v, is_causal, attn_mask, scale)
    return a, lse


def _compiled_backward(dout: Tensor, inputs: KernelInputs, saved: Saved, options: Options) -> tuple[Tensor, ...]:
    q, k, v, bias, *_ = inputs
    dq, dk, dv = torch.ops.preconditioned_attention.flash_cpu_backward.default(
        dout, q, k, v, saved.out, saved.lse, options.is_causal, bias, options.scale
    )
    return dq, dk, dv


KERNELS["flash_cpu"] = Kernel(_forward, _kernel_backward)
KERNELS["flash_cpu_compiled"] = Kernel(_compiled_forward, _compiled_backward)


class FlashCPU(FlashBackend):
    """The backend ``"flash"`` on the CPU."""

    kernel, compiled_kernel = "flash_cpu", "flash_cpu_compiled"

    def unsupported_reason(self, inputs: AttentionInputs) -> str | None:
        """Why the kernel cannot compute with ``inputs``; None if it can."""
        return unsupported_by_cpu_flash(inputs)


FLASH_CPU = FlashCPU()
