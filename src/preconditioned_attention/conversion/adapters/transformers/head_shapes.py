"""The number of heads and their width, from the attribute names in use across transformers' attention classes."""

from __future__ import annotations

from torch import nn

from ...adapter import HeadShape, read_int

_NUM_HEADS = (
    *("num_attention_heads", "num_heads", "n_heads", "n_head", "num_attn_heads", "attention_heads", "heads"),
    "no_heads",
)
# `values_head_dim` and its like before `head_dim`: what counts is the width of the output.
_HEAD_DIM = (
    *("attention_head_size", "values_head_dim", "v_channels_per_head", "key_value_proj_dim", "d_head", "dim_head"),
    *("head_dim", "head_width", "c_hidden"),
)
_WIDTH = ("out_dim_projection", "embed_dim", "d_model", "inner_dim", "hidden_size", "split_size")


def heads_of(module: nn.Module) -> HeadShape:
    """From the attribute names in use across these classes, or their configurations; or a projection's width."""
    source = module if read_int(module, *_NUM_HEADS) else getattr(module, "config", None)
    num_heads, head_dim, width = (read_int(source, *names) for names in (_NUM_HEADS, _HEAD_DIM, _WIDTH))
    if width is None:
        projections = (getattr(module, name, None) for name in ("proj", "qkv", "to_out"))
        width = next((found for p in projections if (found := read_int(p, "in_features"))), None)
    if head_dim is None and num_heads and width:
        head_dim = width // num_heads
    return HeadShape(num_heads, head_dim)
