"""Why a flash-type kernel cannot compute a call: what holds for all of them, for the CPU's, and for those of CUDA."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.backends.cuda import SDPAParams
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..._compiler import assume_constant_result
from ..inputs import PLAIN, AttentionInputs
from ..rows.formula import eps_is_negligible

CanUse = Callable[[SDPAParams, bool], bool]


def unsupported_on(device: str, inputs: AttentionInputs) -> str | None:
    """Why no re-normalized kernel on ``device`` can compute with ``inputs``, or None."""
    q, k, v = inputs.q, inputs.k, inputs.v
    if not (q.device.type == device and k.device.type == device and v.device.type == device):
        return f"q, k and v must be on {device}; got {q.device}, {k.device} and {v.device}"
    if torch._C._are_functorch_transforms_active():
        return "torch.func transforms are not supported"
    if any(type(x) not in PLAIN and _dispatches_itself(x) for x in (q, k, v)):
        return "tensor subclasses are not supported"
    if q.is_nested or k.is_nested or v.is_nested:
        return "nested tensors are not supported"
    if not eps_is_negligible(inputs.eps, q.dtype):
        return f"eps={inputs.eps} is too large for {q.dtype}: the gradient of zero rows would show it"
    return None


def _dispatches_itself(x: Tensor) -> bool:
    """Whether the class of ``x`` may make something else of `scaled_dot_product_attention`, or of any operator."""
    own = type(x).__torch_function__ is not torch._C._disabled_torch_function_impl
    return own or is_traceable_wrapper_subclass(x)


def unsupported_by_cpu_flash(inputs: AttentionInputs) -> str | None:
    """Why the CPU's flash kernel cannot compute with ``inputs``, or None.

    The conditions are those under which PyTorch picks the kernel for plain attention, `torch.func` transforms,
    subclasses and an eps that is too large aside.
    """
    if not _flash_enabled():
        return "flash attention is switched off (torch.nn.attention.sdpa_kernel)"
    if inputs.dropout_p > 0:
        return "the kernel has no dropout"
    return unsupported_on("cpu", inputs) or _unsupported_shapes(inputs) or _unsupported_mask(inputs)


@assume_constant_result
def _flash_enabled() -> bool:
    """What `torch.nn.attention.sdpa_kernel` allows; compiled code keeps what held when it was compiled."""
    return torch.backends.cuda.flash_sdp_enabled()


def _unsupported_shapes(inputs: AttentionInputs) -> str | None:
    q, k, v = inputs.q, inputs.k, inputs.v
    if not q.dtype == k.dtype == v.dtype:
        return f"q, k and v must have one dtype; got {q.dtype}, {k.dtype} and {v.dtype}"
    if not q.dim() == k.dim() == v.dim() == 4:
        return "q, k and v must have four axes, (B, H, tokens, head_dim)"
    if inputs.is_empty():
        return "there must be at least one head, query, key and entry"
    (batch, heads, _, d), keys = q.shape, k.shape
    if v.shape[:3] != keys[:3] or keys[0] != batch:
        return "batch sizes, and heads and lengths of k and v, must be equal"
    if heads != keys[1] and not (inputs.enable_gqa and heads % keys[1] == 0):
        return "q must have as many heads as k, or with enable_gqa a multiple of them"
    if not d == keys[3] == v.shape[3]:
        return "q, k and v must have one head dimension"
    if not q.stride(3) == k.stride(3) == v.stride(3) == 1:
        return "the head dimension must lie contiguously in memory"
    return None


def _unsupported_mask(inputs: AttentionInputs) -> str | None:
    mask, q = inputs.attn_mask, inputs.q
    if mask is None:
        return None
    if mask.requires_grad:
        return "the kernel returns no gradient of the mask"
    if mask.layout != torch.strided:
        return "attn_mask must be dense"
    if mask.device.type != "cpu" or mask.dtype not in (torch.bool, torch.float32, q.dtype):
        return f"attn_mask must be on the CPU, and boolean, float32 or {q.dtype} as q; got {mask.dtype}"
    full = (q.shape[0], q.shape[1], q.shape[2], inputs.k.shape[2])
    if mask.dim() not in (2, 4) or any(m not in (1, f) for m, f in zip(mask.shape, full[-mask.dim() :], strict=True)):
        return f"attn_mask must have two or four axes and broadcast to {full}; got {tuple(mask.shape)}"
    return None


def unsupported_by_cuda_kernel(inputs: AttentionInputs, can_use: CanUse) -> str | None:
    """Why a CUDA kernel cannot compute with ``inputs``, or None; ``can_use`` is PyTorch's own check of that kernel.

    It considers the device, the dtypes, the shapes, the masks and what `torch.nn.attention.sdpa_kernel` allows.
    """
    reason = unsupported_on("cuda", inputs)
    if reason is not None:
        return reason
    if torch.version.hip is not None:
        return "its kernels on ROCm have not been checked"
    params = SDPAParams(
        inputs.q, inputs.k, inputs.v, inputs.attn_mask, inputs.dropout_p, inputs.is_causal, inputs.enable_gqa
    )  # fmt: skip
    if can_use(params, False):
        return None
    return "PyTorch's kernel does not support it" + ("" if torch.compiler.is_compiling() else _why(params, can_use))


def _why(params: SDPAParams, can_use: CanUse) -> str:
    """PyTorch's reasons, which are warnings in debug mode."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        can_use(params, True)
    return "".join(f"; {warning.message}" for warning in caught)
