"""timm: DaViT's window attention, so that the fused operators serve it; its channel attention is in `tables`."""

from __future__ import annotations

from timm.models import davit
from torch import Tensor, nn

from ....layers import Preconditioner
from ...mechanisms import ClassSwap, text_digest
from ...registry import HeadShape, read_int, register_named

# Digest of the upstream forward that the replacement below was written against (timm 1.0.31). Any other text goes by
# the pre-hook of `tables`, which keeps the heads' outputs once more, before and after C.
KNOWN_FORWARD = "f612770d6f7651f7"


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
class WindowAttentionSwap(ClassSwap):
    """The exact class, with a forward that is known: computes through the function."""

    honours_backend = True
    original = davit.WindowAttention
    replacement = PreconditionedWindowAttention

    def serves(self, cls: type[nn.Module], registered: type[nn.Module]) -> bool:
        """Whether upstream's forward is the one that the replacement was written against."""
        return super().serves(cls, registered) and text_digest(registered.forward) == KNOWN_FORWARD

    def shape(self, module: nn.Module) -> HeadShape:
        """From the module's attributes."""
        num_heads, dim = read_int(module, "num_heads"), read_int(module, "dim")
        assert num_heads is not None, "upstream's constructor sets both"
        assert dim is not None, "upstream's constructor sets both"
        return HeadShape(num_heads, dim // num_heads)
