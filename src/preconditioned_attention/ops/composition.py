"""`C A` as two steps: whatever kernel `scaled_dot_product_attention` picks, then the rows are equilibrated."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..config import Gradient
from ..equilibration import equilibrate


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
) -> Tensor:
    """`equilibrate(scaled_dot_product_attention(q, k, v))`; every argument as in the public function."""
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=attn_mask, dropout_p=dropout_p, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa
    )
    return equilibrate(out, gradient=gradient, eps=eps, gain=gain)
