"""transformers: its `sdpa` attention function with `Preconditioner.attend` instead of `scaled_dot_product_attention`.

The arguments are prepared as in `sdpa_attention_forward`, by the same functions of transformers. This replaces only
known source texts of that function, and its common calls; for all others :func:`supports` is False, and the
caller scales the rows that their function returns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations import sdpa_attention as upstream

from ....layers import Preconditioner
from ...source_texts.reachable_code import text_digest

KNOWN_TEXTS = {
    "e3d016070b6ac957": "5.23.0",
    "9be3d6b1f79abc00": "5.24.0",
}  # digest -> the transformers that it was read in

_TEXT_IS_KNOWN = text_digest(upstream.sdpa_attention_forward) in KNOWN_TEXTS
_COMMON_OPTIONS = {"dropout", "scaling", "is_causal"}


def supports(module: nn.Module, query: Tensor, options: dict[str, Any]) -> bool:
    """Whether :func:`attend` computes what their function does in this call.

    Not for soft-capped, biased or paged attention, nor for single-token decoding with shared key heads, which theirs
    packs differently.
    """
    special = (name for name, value in options.items() if name not in _COMMON_OPTIONS and value is not None)
    if not _TEXT_IS_KNOWN or torch.jit.is_tracing():
        return False
    if any(name in ("softcap", "position_bias", "cache") for name in special) or options.get("output_attentions"):
        return False
    return query.shape[2] > 1 or getattr(module, "num_key_value_groups", 1) == 1


def attend(
    preconditioner: Preconditioner,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    options: dict[str, Any],
) -> tuple[Tensor, None]:
    """Preconditioned heads as (B, N, H, d), from q, k, v as (B, H, N, d), and no weights."""
    groups = getattr(module, "num_key_value_groups", 1)
    enable_gqa = groups > 1 and upstream.use_gqa_in_sdpa(attention_mask, key, value)
    if groups > 1 and not enable_gqa:
        key, value = upstream.repeat_kv(key, groups), upstream.repeat_kv(value, groups)
    length = query.shape[2]
    is_causal = length > 1 and attention_mask is None and _is_causal(module, options)
    if is_causal and key.shape[2] > length:  # an empty static cache: the keys after the queries are all masked
        key, value = key[:, :, :length], value[:, :, :length]
    dropout_p, scale = options.get("dropout", 0.0), options.get("scaling")
    out = preconditioner.attend(query, key, value, attention_mask, dropout_p, is_causal, scale, enable_gqa)
    return out.transpose(1, 2).contiguous(), None


def _is_causal(module: nn.Module, options: dict[str, Any]) -> Any:
    given = options.get("is_causal")
    return getattr(module, "is_causal", True) if given is None else given
