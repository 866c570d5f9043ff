"""Masks of the class `torch.nn.attention.bias.CausalBias` as ordinary masks.

PyTorch's class is a tensor by inheritance only: its shape and entries are not those of a mask.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import Parameter


def as_mask(attn_mask: Any, is_causal: bool, q: Tensor, k: Tensor) -> tuple[Any, bool]:
    """``attn_mask`` and ``is_causal``, the mask as a tensor of its own shape where it was a `CausalBias`.

    Aligned to the upper left it is ``is_causal``, whatever lengths it was made for, as in
    `scaled_dot_product_attention`. Aligned to the lower right the lengths decide where it lies.
    """
    if attn_mask is None or type(attn_mask) in (Tensor, Parameter):  # the usual cases, at no cost
        return attn_mask, is_causal
    if all(base.__name__ != "CausalBias" for base in type(attn_mask).__mro__):  # importing its module takes seconds
        return attn_mask, is_causal
    from torch.nn.attention.bias import CausalVariant

    lengths = attn_mask.seq_len_q, attn_mask.seq_len_kv
    is_square = lengths[0] == lengths[1] and (q.size(-2), k.size(-2)) == lengths
    if attn_mask.variant == CausalVariant.UPPER_LEFT or is_square:
        return None, True
    return attn_mask._materialize(q.device), is_causal
