"""Which backend computes a call: nested, distributed, packed and plain tensors, and the choice of the kernel."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import _get_dispatch_mode_pre_dispatch
from torch.nn.attention import SDPBackend

from .._compiler import assume_constant_result
from ..config import BACKENDS, ROW_BACKENDS, BackendName, check_choice
from .backend import Backend, PackedBackend
from .context_parallel import attend_in_context, context_mesh, refuse_context_parallel, ring_supports
from .flash.cpu import FLASH_CPU
from .flash.cuda import FLASH_CUDA
from .flash.cudnn import CUDNN
from .flash.efficient import EFFICIENT
from .flash.packed_cpu import PACKED_FLASH_CPU
from .flash.packed_cuda import PACKED_FLASH_CUDA
from .inputs import PLAIN, AttentionInputs, PackedInputs
from .nested import attend_nested
from .packed import one_by_one
from .reference import REFERENCE
from .replaced import SDPA, replacement
from .rows.autograd import equilibrate
from .rows.formula import EPS_SQUARED
from .sdpa_then_normalize import SDPA_THEN_NORMALIZE
from .tracing import PROXY_MODE, is_recorded

REGISTRY: dict[str, Backend] = {
    "flash": FLASH_CPU,
    "efficient": EFFICIENT,
    "cudnn": CUDNN,
    "composition": SDPA_THEN_NORMALIZE,
    "reference": REFERENCE,
}
ON_CUDA: dict[str, Backend] = {**REGISTRY, "flash": FLASH_CUDA}
_NAMES = {
    SDPBackend.FLASH_ATTENTION.value: "flash",
    SDPBackend.EFFICIENT_ATTENTION.value: "efficient",
    SDPBackend.CUDNN_ATTENTION.value: "cudnn",
}
_log = logging.getLogger(__name__)
_logged: set[str] = set()


def compute(inputs: AttentionInputs, backend: BackendName) -> Tensor:
    """Compute `C Attn(q, k, v)`; nested and distributed q, k and v give a nested or distributed result.

    ``"auto"`` takes the kernel that plain attention would take, re-normalized, and where there is none plain
    attention followed by the scaling of its rows; it logs why, once. What is recorded for other tools is the latter.

    Raises:
        ValueError: ``backend`` is not one of the known names, or it does not support the inputs, or the tensors do
            not fit each other; the message says why.
    """
    q, k, v = inputs.q, inputs.k, inputs.v
    if (  # what FLASH_CPU supports, of the usual kind: found here because each function costs as much as an operator
        backend == "auto"
        and not torch.compiler.is_compiling()
        and type(q) in PLAIN
        and type(k) in PLAIN
        and type(v) in PLAIN
        and (q.is_cpu and k.is_cpu and v.is_cpu)
        and not (q.is_nested or k.is_nested or v.is_nested)
        and q.dim() == 4
        and q.shape == k.shape == v.shape
        and q.numel() > 0
        and q.dtype == k.dtype == v.dtype
        and q.stride(3) == k.stride(3) == v.stride(3) == 1
        and inputs.attn_mask is None
        and inputs.dropout_p == 0
        and (inputs.gain is None or type(inputs.gain) in PLAIN)
        and inputs.eps * inputs.eps <= EPS_SQUARED[q.dtype]
        and torch.backends.cuda.flash_sdp_enabled()
        and F.scaled_dot_product_attention is SDPA
        and torch._C._len_torch_function_stack() == 0
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()
        and not torch.jit.is_tracing()
        and torch._C._get_dispatch_mode(PROXY_MODE) is None
        and _get_dispatch_mode_pre_dispatch(PROXY_MODE) is None
    ):
        return FLASH_CPU.attend(inputs)
    return _by_container(inputs, backend)


def _by_container(inputs: AttentionInputs, backend: BackendName) -> Tensor:
    tensors = [inputs.q, inputs.k, inputs.v, inputs.attn_mask, inputs.gain]
    present = [x for x in tensors if x is not None]
    if any(x.is_nested for x in present[:3]):
        refuse_context_parallel("preconditioned_attention of nested tensors")
        return attend_nested(inputs, partial(_by_name, backend=backend), partial(compute_packed, backend=backend))
    if any(type(x) not in PLAIN for x in present) and _any_distributed(present):
        from .dtensor import attend_distributed  # imports torch.distributed.tensor, which most programs never need

        return attend_distributed(inputs, partial(_in_context, backend=backend))
    return _in_context(inputs, backend)


def _in_context(inputs: AttentionInputs, backend: BackendName) -> Tensor:
    """Plain tensors; inside `context_parallel` by PyTorch's ring, or with keys and values gathered."""
    mesh = None if inputs.gathered else context_mesh()
    if mesh is None:
        return _by_name(inputs, backend)
    check_choice("backend", backend, BACKENDS)
    inputs = inputs.under_autocast()
    if backend in ROW_BACKENDS and ring_supports(inputs):
        inputs.check_shapes()
        if backend == "auto":
            _log_once("inside context_parallel PyTorch attends to the keys of other processes in a ring")
        return SDPA_THEN_NORMALIZE.attend(inputs)
    return attend_in_context(inputs, mesh, partial(_by_name, backend=backend))


def _any_distributed(tensors: list[Tensor]) -> bool:
    # By type: is_traceable_wrapper_subclass is False for a DTensor under torch.compile.
    if not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return any(isinstance(x, DTensor) for x in tensors)


def _by_name(inputs: AttentionInputs, backend: BackendName) -> Tensor:
    """Plain tensors, by the named backend; empty ones by plain attention."""
    check_choice("backend", backend, BACKENDS)
    inputs = inputs.under_autocast()
    if inputs.is_empty():  # whatever the backend: PyTorch launches no kernel for it either
        return SDPA_THEN_NORMALIZE.attend(inputs)
    if backend == "auto":
        return _first_supported(inputs)
    chosen = _registry(inputs)[backend]
    reason = _recording_reason(backend) or _replaced_reason(inputs, backend) or chosen.unsupported_reason(inputs)
    if reason is not None:
        inputs.check_shapes()
        raise ValueError(f"backend={backend!r} does not support this call: {reason}. Use backend='auto'")
    return chosen.attend(inputs)


def _recording_reason(backend: BackendName) -> str | None:
    if backend in ROW_BACKENDS or backend == "reference" or not is_recorded():
        return None
    return (
        "torch.export, torch.jit.trace and make_fx record what every tool knows: plain attention, and then the scaling "
        "of its rows"
    )


def _replaced_reason(inputs: AttentionInputs, backend: BackendName) -> str | None:
    return None if backend == "composition" or inputs.gathered else replacement()


def _first_supported(inputs: AttentionInputs) -> Tensor:
    if is_recorded():
        return SDPA_THEN_NORMALIZE.attend(inputs)
    replaced = _replaced_reason(inputs, "auto")
    if replaced is not None:
        inputs.check_shapes()
        _log_once(replaced)
        return SDPA_THEN_NORMALIZE.attend(inputs)
    reasons = []
    registry = _registry(inputs)
    for name in _candidates(inputs):
        reason = registry[name].unsupported_reason(inputs)
        if reason is None:
            return registry[name].attend(inputs)
        reasons.append(f"{name}: {reason}")
    inputs.check_shapes()  # before anything is logged about backends
    _log_once("; ".join(reasons) or f"PyTorch has no fused kernel for it on {inputs.q.device.type}")
    return SDPA_THEN_NORMALIZE.attend(inputs)


def _registry(inputs: AttentionInputs) -> dict[str, Backend]:
    return ON_CUDA if inputs.q.device.type == "cuda" else REGISTRY


def _candidates(inputs: AttentionInputs) -> tuple[str, ...]:
    if inputs.q.device.type == "cuda":
        return _cuda_candidates(inputs)
    return ("flash",) if inputs.q.device.type == "cpu" else ()


def _cuda_candidates(inputs: AttentionInputs) -> tuple[str, ...]:
    """The backends to try, in the order of PyTorch's own choice; none where it has no fused kernel for the inputs."""
    if torch.compiler.is_compiling():  # `_fused_sdp_choice` is not traceable
        return ("flash", "efficient")
    try:
        choice = torch._fused_sdp_choice(
            inputs.q, inputs.k, inputs.v, inputs.attn_mask, inputs.dropout_p, inputs.is_causal,
            scale=inputs.scale, enable_gqa=inputs.enable_gqa,
        )  # fmt: skip
    except RuntimeError:  # sdpa_kernel allows no kernel that supports it; plain attention raises with the reason
        return ()
    return tuple(dict.fromkeys((_NAMES[choice], "flash", "efficient"))) if choice in _NAMES else ()


@assume_constant_result  # so that it is logged while a compiler traces, too
def _log_once(reason: str) -> None:
    if reason not in _logged:
        _logged.add(reason)
        _log.warning("computed as plain attention and a scaling of its rows, which costs more memory: %s", reason)


def compute_packed(packed: PackedInputs, backend: BackendName) -> Tensor:
    """Compute `C Attn(q, k, v)` within each sequence: by a packed flash kernel if possible, otherwise one by one.

    Raises:
        ValueError: ``backend`` is not one of the known names, or it does not support the inputs; the message says why.
    """
    check_choice("backend", backend, BACKENDS)
    refuse_context_parallel("preconditioned_varlen_attention")
    inputs = packed.inputs.under_autocast()
    if not inputs.q.dtype == inputs.k.dtype == inputs.v.dtype:
        raise ValueError(f"q, k and v must have one dtype; got {inputs.q.dtype}, {inputs.k.dtype} and {inputs.v.dtype}")
    packed = replace(packed, inputs=inputs)
    if is_recorded():
        return _recorded_packed(packed, backend)
    if backend not in ("auto", "flash") or inputs.is_empty():
        return attend_each_sequence(packed, backend)
    flash = _packed_flash(inputs)
    reason = replacement() or flash.unsupported_reason(packed)
    if reason is None:
        return flash.attend(packed)
    if backend == "flash":
        raise ValueError(f"backend='flash' does not support this call: {reason}. Use backend='auto'")
    return attend_each_sequence(packed, backend)


def _packed_flash(inputs: AttentionInputs) -> PackedBackend:
    return PACKED_FLASH_CPU if inputs.q.device.type == "cpu" else PACKED_FLASH_CUDA


def _recorded_packed(packed: PackedInputs, backend: BackendName) -> Tensor:
    """Plain attention within each sequence as one operator, and then the rows; both have derivatives."""
    inputs = packed.inputs
    flash = _packed_flash(inputs)
    reason = flash.unsupported_reason(packed)
    if backend not in ("auto", "flash"):
        reason = f"backend={backend!r} attends to one sequence after the other, whose lengths would be recorded too"
    if reason is not None:
        raise ValueError(
            f"preconditioned_varlen_attention is recorded (torch.export, torch.jit.trace, make_fx) by the packed flash "
            f"kernel alone, with backend='auto': {reason}"
        )
    rows = flash.attend_plain(packed).transpose(0, 1)
    return equilibrate(rows, gradient=inputs.gradient, eps=inputs.eps, gain=inputs.gain).transpose(0, 1)


def attend_each_sequence(packed: PackedInputs, backend: BackendName) -> Tensor:
    """`C Attn(q, k, v)` of one sequence after the other.

    Raises:
        ValueError: ``backend`` does not support one of the sequences, or the boundaries do not fit.
    """
    return one_by_one(packed, partial(_by_name, backend=backend))
