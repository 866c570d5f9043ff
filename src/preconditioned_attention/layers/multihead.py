"""Multi-head softmax attention over tokens: self and cross, with shared key heads, rotary positions and a cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, overload

import torch
from torch import Tensor, nn

from .._checks import check_integer
from .._symbolic import one_node
from ..config import PreconditionConfig
from ..ops import as_mask
from ._attention import PAPER, AttentionLayer, split_heads

Rotary = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
KeyValue = tuple[Tensor, Tensor]


class MultiheadAttention(AttentionLayer):
    r"""`proj(concat_h C_h A_h)` with `A_h = softmax(q_h k_h^T / sqrt(d) + mask) v_h`; plain: without the `C_h`.

    `C_h = diag(1 / ||(A_h)_i||_2)`, one norm per token per head. The heads are computed by
    :func:`preconditioned_attention.preconditioned_attention`, plain ones by `scaled_dot_product_attention`.

    Args:
        dim: width of the input and of the output.
        num_heads: number of query heads.
        num_kv_heads: number of key and value heads, a divisor of ``num_heads``; None: as many. Fewer is grouped-query
            attention (Ainslie et al. 2023), one is multi-query attention.
        head_dim: width of a head; None: ``dim // num_heads``.
        context_dim: width of ``context`` in cross attention; None: ``dim``.
        qkv_bias: whether the projections of queries, keys and values have a bias.
        proj_bias: whether the output projection has one.
        attn_drop: dropout of the attention weights, before the norm.
        proj_drop: dropout of the output.
        precondition: the method's options; None: plain attention.
        device, dtype: of the parameters.

    Raises:
        ValueError, TypeError: a size or an option does not fit; the message names it.

    Source: Vaswani et al., "Attention Is All You Need", 2017; arXiv 2603.27153 for `C`.

    Example:
        >>> layer = MultiheadAttention(64, 4, num_kv_heads=2)
        >>> layer(torch.randn(2, 10, 64), is_causal=True).shape
        torch.Size([2, 10, 64])
    """

    fused = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        context_dim: int | None = None,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        precondition: PreconditionConfig | None = PAPER,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            dim,
            num_heads,
            head_dim=head_dim,
            proj_bias=proj_bias,
            proj_drop=proj_drop,
            precondition=precondition,
            device=device,
            dtype=dtype,
        )
        self.num_kv_heads = (
            num_heads if num_kv_heads is None else check_integer("num_kv_heads", num_kv_heads, minimum=1)
        )
        if num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads must divide num_heads = {num_heads}; got {num_kv_heads}")
        self.context_dim = dim if context_dim is None else check_integer("context_dim", context_dim, minimum=1)
        width, kv_width = num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        self.q_proj = nn.Linear(dim, width, bias=qkv_bias, device=device, dtype=dtype)
        self.k_proj = nn.Linear(self.context_dim, kv_width, bias=qkv_bias, device=device, dtype=dtype)
        self.v_proj = nn.Linear(self.context_dim, kv_width, bias=qkv_bias, device=device, dtype=dtype)
        self.attn_drop = nn.Dropout(attn_drop)

    @overload
    def forward(
        self,
        x: Tensor,
        context: Tensor | None = ...,
        *,
        attn_mask: Tensor | None = ...,
        is_causal: bool = ...,
        rotary: Rotary | None = ...,
        past_key_value: KeyValue | None = ...,
        use_cache: Literal[False] = ...,
    ) -> Tensor: ...

    @overload
    def forward(
        self,
        x: Tensor,
        context: Tensor | None = ...,
        *,
        attn_mask: Tensor | None = ...,
        is_causal: bool = ...,
        rotary: Rotary | None = ...,
        past_key_value: KeyValue | None = ...,
        use_cache: Literal[True],
    ) -> tuple[Tensor, KeyValue]: ...

    @one_node
    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        rotary: Rotary | None = None,
        past_key_value: KeyValue | None = None,
        use_cache: bool = False,
    ) -> Tensor | tuple[Tensor, KeyValue]:
        """Attend from ``x`` to ``context``, or to itself and what came before it.

        Args:
            x: ``(B, L, dim)``.
            context: ``(B, S, context_dim)`` for cross attention; None: self-attention.
            attn_mask: broadcastable to ``(B, H, L, S)``, `S` with the cached tokens; boolean (True: attend) or added
                to the scores. A query that may attend to nothing has a zero row.
            is_causal: a token attends to itself, what is before it, and every cached token; excludes ``attn_mask``.
            rotary: applied to the new queries ``(B, H, L, d)`` and keys ``(B, H_kv, S, d)``, and returns both;
                positions are up to the caller. Cached keys are already rotated.
            past_key_value: keys and values of earlier tokens, each ``(B, H_kv, P, d)``, as an earlier call returned
                them.
            use_cache: also return the keys and values of all tokens so far.

        Returns:
            ``(B, L, dim)``; with ``use_cache`` that and the pair to pass as the next ``past_key_value``.

        Raises:
            ValueError, TypeError: shapes or options do not fit each other; the message names the argument.
        """
        source = self._check_sources(x, context, is_causal, use_cache or past_key_value is not None)
        q = split_heads(self.q_proj(x), self.head_dim)
        k, v = (split_heads(project(source), self.head_dim) for project in (self.k_proj, self.v_proj))
        if rotary is not None:
            q, k = rotary(q, k)
        if past_key_value is not None:
            self._check_past(past_key_value, k)
            k, v = (torch.cat(pair, dim=-2) for pair in zip(past_key_value, (k, v), strict=True))
        if attn_mask is not None:
            attn_mask, is_causal = _checked(attn_mask, is_causal, q, k)
        elif is_causal:
            attn_mask, is_causal = _causal(q, k)
        heads = self._attend(
            q,
            k,
            v,
            attn_mask=attn_mask,
            dropout_p=self.attn_drop.p if self.training else 0.0,
            is_causal=is_causal,
            enable_gqa=self.num_kv_heads != self.num_heads,
        )
        out = self._merge(heads)
        return (out, (k, v)) if use_cache else out

    def _check_sources(self, x: Tensor, context: Tensor | None, is_causal: bool, cached: bool) -> Tensor:
        """Where keys and values come from."""
        self._check_input(x)
        if context is None:
            if self.context_dim != self.dim:
                raise ValueError(
                    f"context must be given: this layer was built with context_dim={self.context_dim} and "
                    f"dim={self.dim}, so it cannot attend to x itself"
                )
            return x
        if is_causal or cached:
            raise ValueError("is_causal, past_key_value and use_cache are for self-attention; leave context out")
        if context.dim() != 3 or context.shape[0] != x.shape[0] or context.shape[-1] != self.context_dim:
            raise ValueError(
                f"context must have shape (B, S, context_dim) with B = {x.shape[0]} and context_dim = "
                f"{self.context_dim}; got {tuple(context.shape)}"
            )
        return context

    def _check_past(self, past: KeyValue, new: Tensor) -> None:
        for name, x in zip(("keys", "values"), past, strict=True):
            if x.dim() != 4 or x.shape[:2] != new.shape[:2] or x.shape[-1] != self.head_dim:
                raise ValueError(
                    f"past_key_value must hold two tensors (B, num_kv_heads, P, head_dim) with B = {new.shape[0]}, "
                    f"num_kv_heads = {self.num_kv_heads} and head_dim = {self.head_dim}; got {name} of shape "
                    f"{tuple(x.shape)}"
                )


def _causal(q: Tensor, k: Tensor) -> tuple[Tensor | None, bool]:
    """The causal mask aligned to the last token, as ``attn_mask`` and ``is_causal``.

    `scaled_dot_product_attention` aligns its own to the first, which is a different mask once tokens are cached.
    """
    new, all_tokens = q.shape[-2], k.shape[-2]
    if new == all_tokens:
        return None, True
    if new == 1:
        return None, False
    mask = torch.ones(new, all_tokens, dtype=torch.bool, device=q.device)
    return mask.tril(all_tokens - new), False


def _checked(mask: Tensor, is_causal: bool, q: Tensor, k: Tensor) -> tuple[Tensor | None, bool]:
    """``attn_mask`` and ``is_causal`` as the function takes them."""
    if is_causal:
        raise ValueError("attn_mask and is_causal=True exclude each other; put the causal mask into attn_mask")
    dense, is_causal = as_mask(mask, is_causal, q, k)
    if dense is not None:
        _check_mask(dense, (*q.shape[:-1], k.shape[-2]))
    return dense, is_causal


def _check_mask(mask: Tensor, scores: tuple[int, ...]) -> None:
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise TypeError(f"attn_mask must be boolean (True: attend) or floating point (added); got {mask.dtype}")
    shape = tuple(mask.shape)
    fits = all(m in (1, s) for m, s in zip(shape[::-1], scores[::-1], strict=False))
    if not 2 <= len(shape) <= 4 or not fits:
        raise ValueError(f"attn_mask must broadcast to (B, H, L, S) = {scores}; got {shape}")
