"""CPU flash attention, re-normalised: the kernel that plain attention uses, handed other row constants.

See `rows` for the identity. Forward: the kernel, then one pass over the rows. Backward: one pass over the rows, then
the kernel. Saved for the backward pass is what plain flash attention saves, and one number per row more where
``gradient="stop"`` or float16 needs the norms.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .call import Call
from .rows import FLOAT16_FLOOR, eps_is_negligible, precondition_rows, tangent

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def refusal(call: Call) -> str | None:
    """Why this backend cannot serve the call, or None.

    The conditions are those under which PyTorch picks the kernel for plain attention, `torch.func` transforms,
    subclasses and an eps that is too large aside.
    """
    tensors = (call.q, call.k, call.v)
    if not _flash_enabled():
        return "flash attention is switched off (torch.nn.attention.sdpa_kernel)"
    if any(x.device.type != "cpu" for x in tensors):
        return "q, k and v must be on the CPU"
    if torch._C._are_functorch_transforms_active():
        return "torch.func transforms are not served"
    if any(x.is_nested or is_traceable_wrapper_subclass(x) for x in tensors):
        return "nested tensors and tensor subclasses are not served"
    if call.dropout_p > 0:
        return "the kernel has no dropout"
    if not eps_is_negligible(call.eps, call.q.dtype):
        return f"eps={call.eps} is too large for {call.q.dtype}: the gradient of zero rows would show it"
    return _shape_refusal(call) or _mask_refusal(call)


@torch.compiler.assume_constant_result
def _flash_enabled() -> bool:
    """What `torch.nn.attention.sdpa_kernel` allows, here and now; a compiled call keeps what held when it compiled."""
    return torch.backends.cuda.flash_sdp_enabled()


def _shape_refusal(call: Call) -> str | None:
    q, k, v = call.q, call.k, call.v
    if not q.dtype == k.dtype == v.dtype:
        return f"q, k and v must have one dtype; got {q.dtype}, {k.dtype} and {v.dtype}"
    if any(x.dim() != 4 for x in (q, k, v)):
        return "q, k and v must have four axes, (B, H, tokens, head_dim)"
    if not q.shape[0] == k.shape[0] == v.shape[0] or k.shape[1:3] != v.shape[1:3]:
        return "batch sizes, and heads and lengths of k and v, must be equal"
    if q.shape[1] != k.shape[1] and not (call.enable_gqa and q.shape[1] % k.shape[1] == 0):
        return "q must have as many heads as k, or with enable_gqa a multiple of them"
    if not q.shape[3] == k.shape[3] == v.shape[3]:
        return "q, k and v must have one head dimension"
    if q.shape[2] == 0 or k.shape[2] == 0:
        return "there must be at least one query and one key"
    if any(x.stride(3) != 1 for x in (q, k, v)):
        return "the head dimension must lie contiguously in memory"
    return None


def _mask_refusal(call: Call) -> str | None:
    mask = call.attn_mask
    if mask is None:
        return None
    if mask.requires_grad:
        return "the kernel returns no gradient of the mask"
    full = (call.q.shape[0], call.q.shape[1], call.q.shape[2], call.k.shape[2])
    if mask.dim() not in (2, 4) or any(m not in (1, f) for m, f in zip(mask.shape, full[-mask.dim() :], strict=True)):
        return f"attn_mask must have two or four axes and broadcast to {full}; got {tuple(mask.shape)}"
    return None


def attend(call: Call) -> Tensor:
    """`C A`; the call must be one that :func:`refusal` has nothing against."""
    q, k, v = call.q, call.k, call.v
    # One tensor in two places would stop torch.compile at the Function: a view of it is another tensor.
    k = k.view_as(k) if k is q else k
    v = v.view_as(v) if v is call.k or v is q else v
    out: Tensor = _FlashCPU.apply(
        q,
        k,
        v,
        _additive(call.attn_mask, call.q.dtype),
        call.is_causal,
        call.scale,
        call.eps,
        call.gradient == "full",
    )
    if call.gain is None:
        return out
    return (out * call.gain.to(torch.promote_types(out.dtype, torch.float32)).view(-1, 1, 1)).to(out.dtype)


def _additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, -torch.inf)


class _FlashCPU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        is_causal: bool,
        scale: float | None,
        eps: float,
        full: bool,
    ) -> Tensor:
        a, lse = _forward(q, k, v, 0.0, is_causal, attn_mask=mask, scale=scale)
        y, lse, norms = precondition_rows(a, lse, eps)
        floored = q.dtype == torch.float16
        if floored:
            lse = lse + (norms.clamp_min(FLOAT16_FLOOR) / norms).log()
        ctx.save_for_backward(q, k, v, mask, y, lse, None if full and not floored else norms)
        ctx.options = is_causal, scale, full, floored
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mask, y, lse, norms = ctx.saved_tensors
        is_causal, scale, full, floored = ctx.options
        dout = tangent(dy, y) if full else dy
        out = y if full else (y * norms.unsqueeze(-1)).to(y.dtype)
        if floored:
            dout = (dout * (norms.clamp_min(FLOAT16_FLOOR) / norms).unsqueeze(-1)).to(dout.dtype)
        grads = _backward(dout, q, k, v, out, lse, 0.0, is_causal, attn_mask=mask, scale=scale)
        return *grads, None, None, None, None, None
