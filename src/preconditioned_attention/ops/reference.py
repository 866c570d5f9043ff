"""The definition in plain operations: scores, softmax, product, diagonal matrix. Quadratic; the tests' reference."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..config import Gradient
from .autocast import without_autocast
from .inputs import AttentionInputs
from .tracing import hold_constant


class Reference:
    """The backend that computes the definition; it supports everything."""

    def unsupported_reason(self, inputs: AttentionInputs) -> None:
        """None."""

    def attend(self, inputs: AttentionInputs) -> Tensor:
        """As :func:`definition`, for tensors that fit each other."""
        inputs.check_shapes()
        return definition(inputs)


REFERENCE = Reference()


def definition(inputs: AttentionInputs) -> Tensor:
    """`diag(g / ||A_i||) A` with `A = dropout(softmax(scale q k^T + mask)) v`, in at least float32.

    A query that may attend to no key has a zero row.
    """
    a = attention_rows(inputs)
    with without_autocast(a.device.type):
        out = _diagonal(a, inputs.eps, inputs.gradient) @ a
        if inputs.gain is not None:
            out = out * inputs.gain.to(a.dtype).view(-1, 1, 1)
    return out.to(inputs.q.dtype)


def attention_rows(inputs: AttentionInputs) -> Tensor:
    """`A`, in at least float32."""
    q, k, v = inputs.q, _per_query_head(inputs.k, inputs), _per_query_head(inputs.v, inputs)
    dtype = torch.promote_types(q.dtype, torch.float32)
    with without_autocast(q.device.type):
        weights = _weights(q.to(dtype), k.to(dtype), inputs.attn_mask, inputs.is_causal, inputs.scale)
        if inputs.dropout_p > 0:
            weights = torch.dropout(weights, inputs.dropout_p, train=True)
        return weights @ v.to(dtype)


def _per_query_head(x: Tensor, inputs: AttentionInputs) -> Tensor:
    """Keys or values with every head repeated for the query heads that share it."""
    q = inputs.q
    if not inputs.enable_gqa or x.shape[-3] == q.shape[-3]:
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
    norms = hold_constant(norms.double()).to(norms.dtype)
    if gradient == "full":
        norms = rows.masked_fill(zero.unsqueeze(-1), 1.0).square().sum(dim=-1).sqrt()
    return torch.diag_embed(norms.masked_fill(zero, 1.0).reciprocal())
