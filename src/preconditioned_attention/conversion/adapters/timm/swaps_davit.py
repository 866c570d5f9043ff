"""timm: DaViT's window attention, so that the fused operators compute it."""

from __future__ import annotations

from typing import Any, ClassVar

from timm.models import davit
from torch import Tensor

from ....layers import Preconditioner
from ...adapter import HeadShape
from ...registry import register_named
from ..known_text_swap import KnownTextSwap


class PreconditionedWindowAttention(davit.WindowAttention):
    """`timm.models.davit.WindowAttention` whose heads' outputs pass through its preconditioner."""

    preconditioner: Preconditioner

    def forward(self, x: Tensor) -> Tensor:
        """As upstream; ``(B * windows, N, C)`` in and out."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused_attn:
            heads = self.preconditioner.attend(q, k, v)
        else:
            heads = self.preconditioner(self.softmax((q * self.scale) @ k.transpose(-2, -1)) @ v)
        return self.proj(heads.transpose(1, 2).flatten(2))


@register_named("timm.models.davit.WindowAttention")
class WindowAttentionSwap(KnownTextSwap):
    """Computes through the function. With any other text, `proj` is hooked, which keeps the heads' outputs twice."""

    honors_backend = True
    original = davit.WindowAttention
    replacement = PreconditionedWindowAttention
    methods: ClassVar = {"forward": "f612770d6f7651f7"}  # timm 1.0.31

    def shape(self, module: Any) -> HeadShape:
        """From the module's attributes."""
        return HeadShape(module.num_heads, module.dim // module.num_heads)
