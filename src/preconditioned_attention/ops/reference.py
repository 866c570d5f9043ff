"""The definition written out: scores, softmax, product, diagonal matrix. Slow, quadratic, and what tests trust."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..config import Gradient
from .call import Call, without_autocast


def refusal(call: Call) -> str | None:
    """None: it serves every call."""
    return None


def attend(call: Call) -> Tensor:
    """`diag(g / ||A_i||) A` with `A = dropout(softmax(scale q k^T + mask)) v`, in at least float32.

    A query that may attend to no key has a zero row.
    """
    call.check()
    a = rows(call)
    with without_autocast(a.device.type):
        out = _diagonal(a, call.eps, call.gradient) @ a
        if call.gain is not None:
            out = out * call.gain.to(a.dtype).view(-1, 1, 1)
    return out.to(call.q.dtype)


def rows(call: Call) -> Tensor:
    """`A`, in at least float32."""
    q, k, v = call.q, _per_query_head(call.k, call), _per_query_head(call.v, call)
    dtype = torch.promote_types(q.dtype, torch.float32)
    with without_autocast(q.device.type):
        weights = _weights(q.to(dtype), k.to(dtype), call.attn_mask, call.is_causal, call.scale)
        if call.dropout_p > 0:
            weights = torch.dropout(weights, call.dropout_p, train=True)
        return weights @ v.to(dtype)


def _per_query_head(x: Tensor, call: Call) -> Tensor:
    """Keys or values with every head repeated for the query heads that share it."""
    q = call.q
    if not call.enable_gqa or x.shape[-3] == q.shape[-3]:
        return x
    return x.repeat_interleave(q.shape[-3] // x.shape[-3], dim=-3)


def _weights(q: Tensor, k: Tensor, attn_mask: Tensor | None, is_causal: bool, scale: float | None) -> Tensor:
    """softmax(scale q k^T + mask) over the keys; zero, not NaN, where every key is masked out."""
    scores = q @ k.transpose(-2, -1) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
    if attn_mask is not None:
        blocked = (
            torch.zeros_like(attn_mask, dtype=scores.dtype).masked_fill(~attn_mask, -torch.inf)
            if attn_mask.dtype == torch.bool
            else attn_mask.to(scores.dtype)
        )
        scores = scores + blocked
    unreachable = (scores == -torch.inf).all(dim=-1, keepdim=True)
    return scores.masked_fill(unreachable, 0.0).softmax(dim=-1).masked_fill(unreachable, 0.0)


def _diagonal(rows: Tensor, eps: float, gradient: Gradient) -> Tensor:
    """The matrix `C`, built in full: `1 / ||A_i||`, and 1 for zero rows."""
    norms = rows.detach().square().sum(dim=-1).sqrt()
    zero = norms <= eps
    if gradient == "full":
        norms = rows.masked_fill(zero.unsqueeze(-1), 1.0).square().sum(dim=-1).sqrt()
    return torch.diag_embed(norms.masked_fill(zero, 1.0).reciprocal())
