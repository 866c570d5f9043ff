"""One call of the function: what every backend is handed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..config import Gradient


@dataclass(frozen=True, kw_only=True)
class Call:
    """The arguments of :func:`preconditioned_attention.preconditioned_attention`, checked; ``eps`` is resolved."""

    q: Tensor
    k: Tensor
    v: Tensor
    attn_mask: Tensor | None
    dropout_p: float
    is_causal: bool
    scale: float | None
    enable_gqa: bool
    gradient: Gradient
    gain: Tensor | None
    eps: float

    def under_autocast(self) -> Call:
        """The call as `scaled_dot_product_attention` would see it under autocast: float32 becomes the low precision."""
        device = self.q.device.type
        known = device in ("cpu", "cuda")  # asking about these is quicker than asking whether one may ask
        if not (known or _autocast_is_available(device)) or not torch.is_autocast_enabled(device):
            return self
        dtype = torch.get_autocast_dtype(device)
        q, k, v = (_lowered(x, dtype) for x in (self.q, self.k, self.v))
        mask = self.attn_mask
        return replace(self, q=q, k=k, v=v, attn_mask=None if mask is None else _lowered(mask, dtype))


@torch.compiler.assume_constant_result  # torch 2.11 cannot trace the question
def _autocast_is_available(device: str) -> bool:
    return torch.amp.is_autocast_available(device)


def _lowered(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x
