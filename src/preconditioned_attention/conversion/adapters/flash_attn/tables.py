"""flash-attn: where the heads' outputs of `MHA` are, alone and tensor-parallel.

Which of its kernels runs depends on the call (training, packed sequences, a key-value cache, fused rotary embeddings),
and the inner attention modules are called in some cases only. Every call reaches `out_proj`, with the heads merged head
by head: ``(B, N, H d)``, or ``(tokens, H d)`` where sequences are packed.

Written against the source of flash-attn 2 and tested on a module of the same structure; flash-attn itself needs a GPU
to be installed and has not been run.
"""

from __future__ import annotations

from torch import nn

from ...adapter import HeadShape, read_int
from ..table_hooks import HookRow, register_table


def _heads(module: nn.Module) -> HeadShape:
    """A `ParallelMHA` holds only some of the heads."""
    return HeadShape(read_int(module, "num_heads_per_rank", "num_heads"), read_int(module, "head_dim"))


_MHA = HookRow(hook_targets=("out_proj",), heads=_heads, parts=("inner_attn", "inner_cross_attn"))

HOOKS = {"flash_attn.modules.mha.MHA": _MHA, "flash_attn.modules.mha.ParallelMHA": _MHA}

register_table(HOOKS)
