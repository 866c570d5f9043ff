"""CPU flash attention, re-normalised: the kernel that plain attention uses, handed other row constants.

See `rows` for the identity and `renormalised` for how it becomes a function.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .call import Call
from .renormalised import Options, additive, renormalised
from .rows import eps_is_negligible

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def refusal(call: Call) -> str | None:
    """Why this backend cannot serve the call, or None.

    The conditions are those under which PyTorch picks the kernel for plain attention, `torch.func` transforms,
    subclasses and an eps that is too large aside.
    """
    q, k, v = call.q, call.k, call.v
    if not _flash_enabled():
        return "flash attention is switched off (torch.nn.attention.sdpa_kernel)"
    if not (q.device.type == "cpu" and k.device.type == "cpu" and v.device.type == "cpu"):
        return "q, k and v must be on the CPU"
    if torch._C._are_functorch_transforms_active():
        return "torch.func transforms are not served"
    if any(type(x) is not Tensor and is_traceable_wrapper_subclass(x) for x in (q, k, v)):
        return "tensor subclasses are not served"
    if q.is_nested or k.is_nested or v.is_nested:
        return "nested tensors are not served"
    if call.dropout_p > 0:
        return "the kernel has no dropout"
    if not eps_is_negligible(call.eps, q.dtype):
        return f"eps={call.eps} is too large for {q.dtype}: the gradient of zero rows would show it"
    return _shape_refusal(call) or _mask_refusal(call)


@torch.compiler.assume_constant_result
def _flash_enabled() -> bool:
    """What `torch.nn.attention.sdpa_kernel` allows, here and now; a compiled call keeps what held when it compiled."""
    return torch.backends.cuda.flash_sdp_enabled()


def _shape_refusal(call: Call) -> str | None:
    q, k, v = call.q, call.k, call.v
    if not q.dtype == k.dtype == v.dtype:
        return f"q, k and v must have one dtype; got {q.dtype}, {k.dtype} and {v.dtype}"
    if not q.dim() == k.dim() == v.dim() == 4:
        return "q, k and v must have four axes, (B, H, tokens, head_dim)"
    (batch, heads, queries, d), keys = q.shape, k.shape
    if v.shape[:3] != keys[:3] or keys[0] != batch:
        return "batch sizes, and heads and lengths of k and v, must be equal"
    if heads != keys[1] and not (call.enable_gqa and heads % keys[1] == 0):
        return "q must have as many heads as k, or with enable_gqa a multiple of them"
    if not d == keys[3] == v.shape[3]:
        return "q, k and v must have one head dimension"
    if queries == 0 or keys[2] == 0:
        return "there must be at least one query and one key"
    if not q.stride(3) == k.stride(3) == v.stride(3) == 1:
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


def _kernel_forward(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, options: Options) -> tuple[Tensor, ...]:
    is_causal, scale, _ = options
    a, lse = _forward(q, k, v, 0.0, is_causal, attn_mask=bias, scale=scale)
    return a, lse


def _kernel_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    out: Tensor,
    lse: Tensor,
    state: tuple[Tensor, ...],
    options: Options,
    wanted: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    is_causal, scale, _ = options
    grads: tuple[Tensor, ...] = _backward(dout, q, k, v, out, lse, 0.0, is_causal, attn_mask=bias, scale=scale)
    return grads


_attend = renormalised(_kernel_forward, _kernel_backward)


def attend(call: Call) -> Tensor:
    """`C A`; the call must be one that :func:`refusal` has nothing against."""
    mask = call.attn_mask
    if mask is not None and mask.dtype == torch.bool:
        call = replace(call, attn_mask=additive(mask, call.q.dtype))
    return _attend(call)
