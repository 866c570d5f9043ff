"""One call of the function: what every backend is handed."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .._compiler import assume_constant_result
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

    def check(self) -> None:
        """Raise ``ValueError`` if the tensors do not go together. What a fused kernel serves needs no check."""
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
            _check_mask(mask, q, (*batch, q.shape[-2], k.shape[-2]))

    def is_empty(self) -> bool:
        """Whether an axis other than the batch's has no entry: there is nothing then that a kernel could compute."""
        sizes = (*self.q.shape[-3:], *self.k.shape[-3:], *self.v.shape[-3:])
        if not torch.compiler.is_compiling():
            return 0 in sizes
        return any(surely(size == 0) for size in sizes)

    def under_autocast(self) -> Call:
        """The call as `scaled_dot_product_attention` would see it under autocast: float32 becomes the low precision."""
        dtype = _autocast_dtype(self.q.device.type)
        if dtype is None:
            return self
        q, k, v = (_lowered(x, dtype) for x in (self.q, self.k, self.v))
        mask = self.attn_mask
        return replace(self, q=q, k=k, v=v, attn_mask=None if mask is None else _lowered(mask, dtype))


def surely(condition: bool) -> bool:
    """``condition`` about sizes; False where a compiler cannot tell, which shall not have to know."""
    if not torch.compiler.is_compiling():
        return condition
    from torch.fx.experimental.symbolic_shapes import guard_or_false

    return bool(guard_or_false(condition))


def attended_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which `scaled_dot_product_attention` would attend to ``x``, autocast considered."""
    dtype = _autocast_dtype(x.device.type)
    return x.dtype if dtype is None or x.dtype == torch.float64 else dtype


def without_autocast(device: str) -> AbstractContextManager[object]:
    """Whatever is computed within it keeps its dtype."""
    known = device in ("cpu", "cuda") or _autocast_is_available(device)  # not for meta tensors
    return torch.autocast(device, enabled=False) if known else nullcontext()


def _autocast_dtype(device: str) -> torch.dtype | None:
    known = device in ("cpu", "cuda")  # asking about these is quicker than asking whether one may ask
    if not (known or _autocast_is_available(device)) or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


@assume_constant_result  # torch 2.11 cannot trace the question
def _autocast_is_available(device: str) -> bool:
    return torch.amp.is_autocast_available(device)


def _lowered(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x


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


def _check_mask(mask: Tensor, q: Tensor, scores: tuple[int, ...]) -> None:
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
