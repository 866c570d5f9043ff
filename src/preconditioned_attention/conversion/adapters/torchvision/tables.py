"""torchvision: where the heads' outputs of MaxViT's attention are, in its windows and its grids."""

from __future__ import annotations

from ..table_hooks import HookRow, register_table

HOOKS = {
    "torchvision.models.maxvit.RelativePositionalMultiHeadAttention": HookRow(
        hook_targets=("merge",), num_heads="n_heads", head_dim="head_dim"
    ),
}

register_table(HOOKS)
