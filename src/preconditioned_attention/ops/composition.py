"""`C A` as two steps: whatever kernel `scaled_dot_product_attention` picks, then the rows are equilibrated."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .call import Call, surely
from .equilibrated import equilibrate
from .recording import recorded


def refusal(call: Call) -> str | None:
    """None: it serves every call that plain attention serves."""
    return None


def attend(call: Call) -> Tensor:
    """`equilibrate(scaled_dot_product_attention(q, k, v))`."""
    call.check()
    if _is_headless(call):
        call = _without_keys(call)
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
    if recorded():
        out = _in_one_layout(out)
    return equilibrate(out, gradient=call.gradient, eps=call.eps, gain=call.gain)


def _is_headless(call: Call) -> bool:
    q, k, v = call.q, call.k, call.v
    if q.dim() < 3 or k.dim() < 3 or v.dim() < 3:
        return False
    shared = surely(k.shape[-3] == 0) or surely(v.shape[-3] == 0)
    return shared and (call.enable_gqa or surely(q.shape[-3] == 0))


def _without_keys(call: Call) -> Call:
    """No head is as one without keys. PyTorch divides by the number of heads: up to 2.11 that ends the process."""
    k, v = (x.sum(dim=-3, keepdim=True)[..., :0, :] for x in (call.k, call.v))
    return replace(call, k=k, v=v, attn_mask=None)


def _in_one_layout(rows: Tensor) -> Tensor:
    """A copy in which merging the heads is a view, whichever kernel attends where the record is read.

    Kernels and decompositions lay their results out differently, and views that were recorded behind one of them fail
    behind another.
    """
    if rows.dim() < 3:
        return rows
    return rows.transpose(-3, -2).clone(memory_format=torch.contiguous_format).transpose(-3, -2)
