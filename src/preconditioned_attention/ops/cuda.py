"""What the backends over PyTorch's CUDA kernels share: who may be asked, and what PyTorch itself would pick."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch.backends.cuda import SDPAParams
from torch.nn.attention import SDPBackend

from .call import Call
from .renormalised import common_refusal

CanUse = Callable[[SDPAParams, bool], bool]

_NAMES = {
    SDPBackend.FLASH_ATTENTION.value: "flash",
    SDPBackend.EFFICIENT_ATTENTION.value: "efficient",
    SDPBackend.CUDNN_ATTENTION.value: "cudnn",
}


def kernel_refusal(call: Call, can_use: CanUse) -> str | None:
    """Why a CUDA kernel cannot serve the call, or None; ``can_use`` is PyTorch's own answer for that kernel.

    It knows the device, the dtypes, the shapes, the masks and what `torch.nn.attention.sdpa_kernel` allows.
    """
    reason = common_refusal(call, "cuda")
    if reason is not None:
        return reason
    if torch.version.hip is not None:
        return "its kernels on ROCm have not been checked"
    params = SDPAParams(
        call.q, call.k, call.v, call.attn_mask, call.dropout_p, call.is_causal, call.enable_gqa
    )  # fmt: skip
    if can_use(params, False):
        return None
    return "PyTorch's kernel does not serve it" + ("" if torch.compiler.is_compiling() else _why(params, can_use))


def _why(params: SDPAParams, can_use: CanUse) -> str:
    """PyTorch says why as warnings, where it is asked to."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        can_use(params, True)
    return "".join(f"; {warning.message}" for warning in said)


def candidates(call: Call) -> tuple[str, ...]:
    """The backends to try, in the order of PyTorch's own choice; none where it has no fused kernel for the call."""
    if torch.compiler.is_compiling():  # the question which one it is cannot be traced
        return ("flash", "efficient")
    try:
        choice = torch._fused_sdp_choice(
            call.q, call.k, call.v, call.attn_mask, call.dropout_p, call.is_causal,
            scale=call.scale, enable_gqa=call.enable_gqa,
        )  # fmt: skip
    except RuntimeError:  # nothing that sdpa_kernel allows serves it; plain attention will say so
        return ()
    return tuple(dict.fromkeys((_NAMES[choice], "flash", "efficient"))) if choice in _NAMES else ()
