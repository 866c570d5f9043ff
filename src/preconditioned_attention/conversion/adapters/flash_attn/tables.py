"""flash-attn: `MHA`, alone and tensor-parallel.

Which of its kernels runs depends on the call (training, packed sequences, a key-value cache, fused rotary embeddings),
and the inner attention modules see some of the calls only. What every call reaches is `out_proj`, with the heads merged
head by head: ``(B, N, H d)``, or ``(tokens, H d)`` where sequences are packed.

Written against the source of flash-attn 2 and tested on a module of the same structure; flash-attn itself needs a GPU
to be installed and has not been run.
"""

from __future__ import annotations

from torch import nn

from ...mechanisms import PreHook
from ...registry import HeadShape, read_int, register_named


@register_named("flash_attn.modules.mha.MHA", "flash_attn.modules.mha.ParallelMHA")
class MHAHook(PreHook):
    """Self-attention and cross-attention, shared key heads, caches; of `ParallelMHA` the heads of this process."""

    point = "out_proj"
    parts = ("inner_attn", "inner_cross_attn")

    def shape(self, module: nn.Module) -> HeadShape:
        """From the module's attributes; a `ParallelMHA` holds only some of the heads."""
        return HeadShape(read_int(module, "num_heads_per_rank", "num_heads"), read_int(module, "head_dim"))
