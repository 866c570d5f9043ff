"""Which way packed sequences are attended: a packed flash kernel where there is one, otherwise one by one."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ..config import BACKENDS, Backend, check_choice
from . import flash_cpu, flash_cuda, varlen_flash_cpu, varlen_flash_cuda, varlen_sequences
from .varlen_call import Packed


def attend_packed(packed: Packed, backend: Backend) -> Tensor:
    """Compute `C Attn(q, k, v)` within each sequence; ``"auto"`` takes the fastest way that serves the call.

    Raises:
        ValueError: ``backend`` is not one of the known names, or it cannot serve the call; the message says why.
    """
    check_choice("backend", backend, BACKENDS)
    call = packed.call.under_autocast()
    if not call.q.dtype == call.k.dtype == call.v.dtype:
        raise ValueError(f"q, k and v must have one dtype; got {call.q.dtype}, {call.k.dtype} and {call.v.dtype}")
    packed = replace(packed, call=call)
    if backend not in ("auto", "flash") or call.is_empty():
        return varlen_sequences.attend(packed, backend)
    reason = _flash_refusal(packed)
    if reason is None:
        on_cpu = packed.call.q.device.type == "cpu"
        return (varlen_flash_cpu if on_cpu else varlen_flash_cuda).attend(packed)
    if backend == "flash":
        raise ValueError(f"backend='flash' cannot serve this call: {reason}. Use backend='auto'")
    return varlen_sequences.attend(packed, backend)


def _flash_refusal(packed: Packed) -> str | None:
    """The packed kernels serve what the dense ones serve; the causal mask they align themselves."""
    dense = packed.as_one_sequence()
    return (flash_cpu if dense.q.device.type == "cpu" else flash_cuda).refusal(dense)
