"""Which backend computes a call. Backends share one signature and never import each other."""

from __future__ import annotations

import logging
from types import ModuleType

from torch import Tensor

from .._compiler import assume_constant_result
from ..config import BACKENDS, ROW_BACKENDS, Backend, check_choice
from . import composition, cuda, cudnn, efficient, flash_cpu, flash_cuda, reference
from .call import Call
from .recording import recorded

_BACKENDS: dict[str, ModuleType] = {
    "efficient": efficient,
    "cudnn": cudnn,
    "composition": composition,
    "reference": reference,
}
_log = logging.getLogger(__name__)
_said: set[str] = set()


def attend(call: Call, backend: Backend) -> Tensor:
    """Compute `C Attn(q, k, v)` with the named backend; what is empty, by the composition.

    ``"auto"`` takes the kernel that plain attention would take, re-normalised, and where there is none plain
    attention followed by the scaling of its rows; it logs why, once. What is recorded for other tools is the latter.

    Raises:
        ValueError: ``backend`` is not one of the known names, or it cannot serve the call, or the tensors do not go
            together; the message says why.
    """
    check_choice("backend", backend, BACKENDS)
    call = call.under_autocast()
    if call.is_empty():  # whatever the backend: PyTorch launches no kernel for it either
        return composition.attend(call)
    if backend == "auto":
        return _auto(call)
    module = _module(backend, call)
    reason = _recording_refusal(backend) or module.refusal(call)
    if reason is not None:
        call.check()
        raise ValueError(f"backend={backend!r} cannot serve this call: {reason}. Use backend='auto'")
    return module.attend(call)


def _recording_refusal(backend: Backend) -> str | None:
    if backend in ROW_BACKENDS or backend == "reference" or not recorded():
        return None
    return (
        "torch.export, torch.jit.trace and make_fx record what every tool knows: plain attention, and its rows scaled"
    )


def _auto(call: Call) -> Tensor:
    if recorded():
        return composition.attend(call)
    reasons = []
    for name in _candidates(call):
        module = _module(name, call)
        reason = module.refusal(call)
        if reason is None:
            return module.attend(call)
        reasons.append(f"{name}: {reason}")
    call.check()  # before anything is said about backends
    _say_once("; ".join(reasons) or f"PyTorch has no fused kernel for it on {call.q.device.type}")
    return composition.attend(call)


def _module(name: str, call: Call) -> ModuleType:
    if name == "flash":
        return flash_cuda if call.q.device.type == "cuda" else flash_cpu
    return _BACKENDS[name]


def _candidates(call: Call) -> tuple[str, ...]:
    if call.q.device.type == "cuda":
        return cuda.candidates(call)
    return ("flash",) if call.q.device.type == "cpu" else ()


@assume_constant_result  # so that a trace says it too
def _say_once(reason: str) -> None:
    if reason not in _said:
        _said.add(reason)
        _log.warning("computed as plain attention and a scaling of its rows, which costs more memory: %s", reason)
