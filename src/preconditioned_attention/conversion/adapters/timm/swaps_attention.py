"""timm: the attention of ViT and DeiT (`timm.layers.attention.Attention`)."""

from __future__ import annotations

from typing import ClassVar

from timm.layers import attention as upstream
from torch import Tensor, nn

from ....layers import Preconditioner
from ....ops.context_parallel import refuse_context_parallel
from ...normalized import normalized_already
from ...registry import register_named
from ..known_text_swap import KnownTextSwap


class PreconditionedAttention(upstream.Attention):
    """`timm.layers.attention.Attention` whose heads' outputs pass through its preconditioner."""

    preconditioner: Preconditioner

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """As upstream; ``(B, N, C)`` in, ``(B, N, dim_out)`` out."""
        gate = self.gate(x).sigmoid() if self.gate is not None else None
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.fused_attn:
            dropout_p = self.attn_drop.p if self.training else 0.0
            heads = self.preconditioner.attend(q, k, v, attn_mask, dropout_p, is_causal)
        else:
            refuse_context_parallel("timm's attention with fused_attn=False", "fused_attn=True")
            heads = self.preconditioner(self._rows(q, k, v, attn_mask, is_causal))
        out = self.norm(heads.transpose(1, 2).flatten(2))
        if gate is not None:
            out = out * gate
        return self.proj_drop(self.proj(out))

    def _rows(self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, is_causal: bool) -> Tensor:
        """Every head's output by the unfused path, for models built with fused attention switched off."""
        scores = (q * self.scale) @ k.transpose(-2, -1)
        bias = upstream.resolve_self_attn_mask(q.shape[-2], scores, attn_mask, is_causal)
        weights = upstream.maybe_add_mask(scores, bias).softmax(dim=-1)
        return self.attn_drop(weights) @ v


@register_named("timm.layers.attention.Attention")
class AttentionSwap(KnownTextSwap):
    """Computes through the function. With any other text, `norm` is hooked."""

    honors_backend = True
    original = upstream.Attention
    replacement = PreconditionedAttention
    methods: ClassVar = {"forward": "37a80e0fdf45af9c"}  # timm 1.0.28 to 1.0.31; 1.0.16 to 1.0.26 have three others

    def unsupported_reason(self, module: nn.Module) -> str | None:
        """One head before a norm."""
        return normalized_already(module.norm, self.shape(module))
