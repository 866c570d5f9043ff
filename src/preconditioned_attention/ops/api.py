"""Which backend computes a call. Backends share one signature and never import each other."""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from ..config import BACKENDS, Backend, check_choice
from . import composition, flash_cpu, reference
from .call import Call

_BACKENDS: dict[str, ModuleType] = {
    "flash": flash_cpu,
    "composition": composition,
    "reference": reference,
}
_AUTO = ("flash", "composition")  # the fastest first; the last serves every call


def attend(call: Call, backend: Backend) -> Tensor:
    """Compute `C Attn(q, k, v)` with the named backend; ``"auto"`` takes the fastest that serves the call.

    Raises:
        ValueError: ``backend`` is not one of the known names, or it cannot serve the call; the message says why.
    """
    check_choice("backend", backend, BACKENDS)
    call = call.under_autocast()
    if backend == "auto":
        return next(_BACKENDS[name] for name in _AUTO if _BACKENDS[name].refusal(call) is None).attend(call)
    reason = _BACKENDS[backend].refusal(call)
    if reason is not None:
        raise ValueError(f"backend={backend!r} cannot serve this call: {reason}. Use backend='auto'")
    return _BACKENDS[backend].attend(call)
