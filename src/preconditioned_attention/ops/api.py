"""Which backend computes a call. Backends share one signature and never import each other."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..config import BACKENDS, Backend, Gradient, check_choice
from . import composition, reference

_BACKENDS: dict[str, Callable[..., Tensor]] = {
    "composition": composition.attend,
    "reference": reference.attend,
}


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    attn_mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    gradient: Gradient,
    gain: Tensor | None,
    eps: float | None,
    backend: Backend,
) -> Tensor:
    """Compute `C Attn(q, k, v)` with the named backend; ``"auto"`` takes the fastest that serves the call.

    Raises:
        ValueError: ``backend`` is not one of the known names.
    """
    check_choice("backend", backend, BACKENDS)
    compute = _BACKENDS["composition" if backend == "auto" else backend]
    return compute(
        q,
        k,
        v,
        attn_mask=attn_mask,
        dropout_p=dropout_p,
        is_causal=is_causal,
        scale=scale,
        enable_gqa=enable_gqa,
        gradient=gradient,
        gain=gain,
        eps=eps,
    )
