"""CPU flash attention, re-normalised: the kernel that plain attention uses, handed other row constants.

See `rows` for the identity and `renormalised` for how it becomes a function.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .._compiler import assume_constant_result
from .call import Call
from .one_key import LOW_PRECISION, masked_rows
from .renormalised import Inputs, Options, Saved, additive, common_refusal, renormalised
from .rows_torch import row_of_zeros

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


# Compilers are given operators of ours. Backward: Inductor copies what it hands to PyTorch's into one layout; to one of
# ours it hands what there is. Forward: where a compiler takes PyTorch's apart, as `core_aten_decompositions` does, its
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


def refusal(call: Call) -> str | None:
    """Why this backend cannot serve the call, or None.

    The conditions are those under which PyTorch picks the kernel for plain attention, `torch.func` transforms,
    subclasses and an eps that is too large aside.
    """
    if not _flash_enabled():
        return "flash attention is switched off (torch.nn.attention.sdpa_kernel)"
    if call.dropout_p > 0:
        return "the kernel has no dropout"
    return common_refusal(call, "cpu") or _shape_refusal(call) or _mask_refusal(call)


@assume_constant_result
def _flash_enabled() -> bool:
    """What `torch.nn.attention.sdpa_kernel` allows, here and now; a compiled call keeps what held when it compiled."""
    return torch.backends.cuda.flash_sdp_enabled()


def _shape_refusal(call: Call) -> str | None:
    q, k, v = call.q, call.k, call.v
    if not q.dtype == k.dtype == v.dtype:
        return f"q, k and v must have one dtype; got {q.dtype}, {k.dtype} and {v.dtype}"
    if not q.dim() == k.dim() == v.dim() == 4:
        return "q, k and v must have four axes, (B, H, tokens, head_dim)"
    if call.is_empty():
        return "there must be at least one head, query, key and entry"
    (batch, heads, _, d), keys = q.shape, k.shape
    if v.shape[:3] != keys[:3] or keys[0] != batch:
        return "batch sizes, and heads and lengths of k and v, must be equal"
    if heads != keys[1] and not (call.enable_gqa and heads % keys[1] == 0):
        return "q must have as many heads as k, or with enable_gqa a multiple of them"
    if not d == keys[3] == v.shape[3]:
        return "q, k and v must have one head dimension"
    if not q.stride(3) == k.stride(3) == v.stride(3) == 1:
        return "the head dimension must lie contiguously in memory"
    return None


def _mask_refusal(call: Call) -> str | None:
    mask = call.attn_mask
    if mask is None:
        return None
    if mask.requires_grad:
        return "the kernel returns no gradient of the mask"
    if mask.layout != torch.strided:
        return "attn_mask must be dense"
    if mask.device.type != "cpu" or mask.dtype not in (torch.bool, torch.float32, call.q.dtype):
        return f"attn_mask must be on the CPU, and boolean, float32 or {call.q.dtype} as q; got {mask.dtype}"
    full = (call.q.shape[0], call.q.shape[1], call.q.shape[2], call.k.shape[2])
    if mask.dim() not in (2, 4) or any(m not in (1, f) for m, f in zip(mask.shape, full[-mask.dim() :], strict=True)):
        return f"attn_mask must have two or four axes and broadcast to {full}; got {tuple(mask.shape)}"
    return None


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


_LIBRARY.impl("flash_cpu_forward", _flash_forward, "CPU")
torch.library.register_fake("preconditioned_attention::flash_cpu_forward", _flash_forward_fake, lib=_LIBRARY)


def _kernel_forward(inputs: Inputs, options: Options) -> tuple[Tensor, Tensor]:
    q, k, v, bias = inputs
    compiling = torch.compiler.is_compiling()
    operator = torch.ops.preconditioned_attention.flash_cpu_forward.default if compiling else _flash_forward
    a, lse = operator(q, k, v, options.is_causal, bias, options.scale)
    return a, lse


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
    """Without ``out`` it is zero."""
    if bias is not None and v.dtype in LOW_PRECISION:
        out = masked_rows(row_of_zeros(dout) if out is None else out, v, bias)
    return _flash_backward_fake(dout, q, k, v, out, lse, is_causal, bias, scale)


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
    """Without a look at values."""
    out = row_of_zeros(dout) if out is None else out
    dq, dk, dv = _backward(dout, q, k, v, out, lse, 0.0, is_causal, attn_mask=bias, scale=scale)
    return dq, dk, dv


_LIBRARY.impl("flash_cpu_backward", _flash_backward, "CPU")
torch.library.register_fake("preconditioned_attention::flash_cpu_backward", _flash_backward_fake, lib=_LIBRARY)


def _kernel_backward(dout: Tensor, inputs: Inputs, saved: Saved, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    compiling = torch.compiler.is_compiling()
    operator = torch.ops.preconditioned_attention.flash_cpu_backward.default if compiling else _flash_backward
    q, k, v, bias = inputs
    dq, dk, dv = operator(dout, q, k, v, saved.out, saved.lse, options.is_causal, bias, options.scale)
    return dq, dk, dv


_attend = renormalised(_kernel_forward, _kernel_backward)


def attend(call: Call) -> Tensor:
    """`C A`; the call must be one that :func:`refusal` has nothing against."""
    mask = call.attn_mask
    if mask is not None and mask.dtype == torch.bool:
        call = replace(call, attn_mask=additive(mask, call.q.dtype))
    return _attend(call)
