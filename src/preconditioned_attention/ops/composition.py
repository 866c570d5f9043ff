"""`C A` as two steps: whatever kernel `scaled_dot_product_attention` picks, then the rows are equilibrated."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .call import Call
from .equilibrated import equilibrate


def refusal(call: Call) -> str | None:
    """None: it serves every call that plain attention serves."""
    return None


def attend(call: Call) -> Tensor:
    """`equilibrate(scaled_dot_product_attention(q, k, v))`."""
    call.check()
    out = F.scaled_dot_product_attention(
        call.q,
        call.k,
        call.v,
        attn_mask=call.attn_mask,
        dropout_p=call.dropout_p,
        is_causal=call.is_causal,
        scale=call.scale,
        enable_gqa=call.enable_gqa,
    )
    return equilibrate(out, gradient=call.gradient, eps=call.eps, gain=call.gain)
