"""The arguments of a call, checked: `AttentionInputs`, and `PackedInputs` for sequences packed into one tensor."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from ..config import GRADIENTS, Gradient, check_choice, check_eps
from ..equilibration import DTYPES, EPS, EPS_FLOAT16, check_gain, check_rows
from .arguments import check_flag, check_mask, check_probability, check_scale
from .autocast import attended_dtype, autocast_dtype, lowered
from .causal_bias import as_mask
from .tracing import guard_or_false

PLAIN = (Tensor, Parameter)
"""Types of tensors that are neither distributed, nor jagged, nor anything else with a dispatch of its own."""


@dataclass(frozen=True, kw_only=True)
class AttentionInputs:
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
    gathered: bool = False
    """Whether k and v are those of all processes: then nothing that gathers them once more is to be called."""

    def check_shapes(self) -> None:
        """Raise ``ValueError`` if the tensors do not fit each other. What a fused kernel supports needs no check."""
        q, k, v, mask = self.q, self.k, self.v, self.attn_mask
        if not q.dtype == k.dtype == v.dtype:
            raise ValueError(f"q, k and v must have one dtype; got {q.dtype}, {k.dtype} and {v.dtype}")
        if not q.device == k.device == v.device:
            raise ValueError(f"q, k and v must be on one device; got {q.device}, {k.device} and {v.device}")
        if q.is_nested or k.is_nested or v.is_nested:
            return
        if q.shape[-1] != k.shape[-1]:
            raise ValueError(f"q and k must have one head dimension; got {q.shape[-1]} and {k.shape[-1]}")
        if k.shape[-2] != v.shape[-2]:
            raise ValueError(f"k and v must have one length; got {k.shape[-2]} and {v.shape[-2]}")
        if self.enable_gqa:
            _check_groups(q, k, v)
        batch = _batch(q, k, self.enable_gqa)
        if mask is not None:
            _check_mask_fits(mask, q, (*batch, q.shape[-2], k.shape[-2]))

    def is_empty(self) -> bool:
        """Whether an axis other than the batch's has no entry: there is nothing then that a kernel could compute."""
        sizes = (*self.q.shape[-3:], *self.k.shape[-3:], *self.v.shape[-3:])
        if not torch.compiler.is_compiling():
            return 0 in sizes
        return any(guard_or_false(size == 0) for size in sizes)

    def under_autocast(self) -> AttentionInputs:
        """As `scaled_dot_product_attention` would convert them under autocast: float32 becomes the low precision."""
        dtype = autocast_dtype(self.q.device.type)
        if dtype is None:
            return self
        q, k, v = (lowered(x, dtype) for x in (self.q, self.k, self.v))
        mask = self.attn_mask
        return replace(self, q=q, k=k, v=v, attn_mask=None if mask is None else lowered(mask, dtype))


@dataclass(frozen=True, kw_only=True)
class PackedInputs:
    """Sequences laid end to end along the first axis, and where each begins.

    ``inputs`` has q of shape (T_q, H, d), k and v of (T_k, H_kv, d), and no mask. Its ``is_causal`` is aligned to the
    lower right of every sequence, as flash attention aligns it: the last query attends to the last key.
    """

    inputs: AttentionInputs
    cu_seq_q: Tensor  # (sequences + 1,), int32: where each sequence's queries begin, and T_q
    cu_seq_k: Tensor
    max_q: int
    max_k: int


def check_inputs(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    *,
    gradient: Gradient,
    gain: Tensor | None,
    eps: float | None,
) -> AttentionInputs:
    """The arguments of `preconditioned_attention`, each checked by itself.

    The conditions here hold for nearly every call. A check that names what is wrong is called where one does not: in
    eager mode on short sequences a call costs as much as an operator.

    Raises:
        TypeError, ValueError: an argument has a type, dtype or value that it cannot have.
    """
    for name, x in (("q", q), ("k", k), ("v", v)):
        if type(x) not in PLAIN or x.dtype not in DTYPES or x.dim() < 2:
            _check_tokens(x, name)
    if type(gradient) is not str or gradient not in GRADIENTS:
        check_choice("gradient", gradient, GRADIENTS)
    if eps is not None:
        check_eps(eps)
    if gain is not None:
        check_gain(gain, q.size(-3) if q.dim() >= 3 else None)
    if attn_mask is not None:
        check_mask(attn_mask)
    if type(is_causal) is not bool or type(enable_gqa) is not bool:
        check_flag("is_causal", is_causal)
        check_flag("enable_gqa", enable_gqa)
    if attn_mask is not None:
        if is_causal:
            raise ValueError("attn_mask and is_causal=True exclude each other; put the causal mask into attn_mask")
        attn_mask, is_causal = as_mask(attn_mask, is_causal, q, k)
    if type(dropout_p) is not float or not 0 <= dropout_p <= 1:
        dropout_p = check_probability("dropout_p", dropout_p)
    if scale is not None and type(scale) is not float:
        scale = check_scale(scale)
    if eps is None:
        lowered_to = None if q.is_cpu and not torch.is_autocast_enabled("cpu") else attended_dtype(q)
        eps = EPS_FLOAT16 if (lowered_to or q.dtype) == torch.float16 else EPS
    return AttentionInputs(
        q=q,
        k=k,
        v=v,
        attn_mask=attn_mask,
        dropout_p=dropout_p,
        is_causal=is_causal,
        scale=scale,
        enable_gqa=enable_gqa,
        gradient=gradient,
        gain=gain,
        eps=eps,
    )


def _check_tokens(x: Any, name: str) -> None:
    check_rows(x, name)
    if x.dim() < 2:
        raise ValueError(f"{name} must have shape (..., tokens, head_dim); got {tuple(x.shape)}")


def _check_groups(q: Tensor, k: Tensor, v: Tensor) -> None:
    if min(q.dim(), k.dim(), v.dim()) < 3:
        raise ValueError("enable_gqa needs a head axis: q, k and v of shape (..., num_heads, tokens, head_dim)")
    heads, key_heads, value_heads = q.shape[-3], k.shape[-3], v.shape[-3]
    if any(shared != 0 and heads % shared != 0 for shared in (key_heads, value_heads)):
        raise ValueError(
            f"enable_gqa needs a number of query heads that is a multiple of the key heads and of the value heads; "
            f"got {heads}, {key_heads} and {value_heads}"
        )


def _batch(q: Tensor, k: Tensor, grouped: bool) -> tuple[int, ...]:
    """The batch and head axes of the scores."""
    keys = (*k.shape[:-3], q.shape[-3]) if grouped else k.shape[:-2]
    try:
        return tuple(torch.broadcast_shapes(q.shape[:-2], keys))
    except RuntimeError:
        raise ValueError(
            f"batch and head axes of q and k must be equal or broadcast; got {tuple(q.shape[:-2])} and "
            f"{tuple(k.shape[:-2])}. Heads that share keys need enable_gqa=True"
        ) from None


def _check_mask_fits(mask: Tensor, q: Tensor, scores: tuple[int, ...]) -> None:
    if mask.layout != torch.strided:
        raise ValueError(f"attn_mask must be dense; got layout {mask.layout}. Use attn_mask.to_dense()")
    if mask.dtype not in (torch.bool, torch.float32, q.dtype):
        raise ValueError(f"attn_mask must be boolean (True: attend), float32 or {q.dtype} as q; got {mask.dtype}")
    if mask.device != q.device:
        raise ValueError(f"attn_mask must be on the device of q, {q.device}; got {mask.device}")
    own = tuple(mask.shape)
    fits = all(m in (1, s) for m, s in zip(own[::-1], scores[::-1], strict=False))
    if not 2 <= len(own) <= len(scores) or not fits:
        raise ValueError(f"attn_mask must broadcast to the scores, {scores}; got shape {own}")
