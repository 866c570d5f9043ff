"""open_clip: where the heads' outputs of its `Attention` are.

Its ordinary transformers are built of `nn.MultiheadAttention`, and its timm and Hugging Face towers of those libraries'
classes.
"""

from __future__ import annotations

from torch import nn

from ...registry import composites_named
from ..table_hooks import HookRow, register_table


def _scales_heads(module: nn.Module) -> str | None:
    if module.head_scale is None:
        return None
    return "with scale_heads=True the heads are scaled before a module is called with them"


HOOKS = {
    # `ln_inner` is always called, with the merged heads; an identity unless the model has an inner norm.
    "open_clip.transformer.Attention": HookRow(
        hook_targets=("ln_inner",),
        num_heads="num_heads",
        head_dim="head_dim",
        normalizes=True,
        unsupported_if=_scales_heads,
    ),
}
COMPOSITES = (
    "open_clip.loss.DistillClipLoss",  # its softmax is over a batch's logits
    "open_clip.transformer.AttentionalPooler",  # holds an `nn.MultiheadAttention`
)

register_table(HOOKS)
composites_named(*COMPOSITES)
