"""transformers: XLNet, which projects by an einsum with a parameter."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from transformers.models.xlnet import modeling_xlnet as xlnet

from ....layers import Preconditioner
from ...adapter import HeadShape
from ...registry import register_named
from ..known_text_swap import KnownTextSwap
from .head_shapes import heads_of


class PreconditionedXLNetRelativeAttention(xlnet.XLNetRelativeAttention):
    """XLNet's attention, content and query stream; its projection is an einsum with a parameter."""

    preconditioner: Preconditioner

    def rel_attn_core(
        self,
        q_head: Tensor,
        k_head_h: Tensor,
        v_head_h: Tensor,
        k_head_r: Tensor,
        seg_mat: Tensor | None = None,
        attn_mask: Tensor | None = None,
        output_attentions: bool = False,
    ) -> Any:
        """As upstream, with every head's output (N, B, H, d) preconditioned."""
        out = super().rel_attn_core(q_head, k_head_h, v_head_h, k_head_r, seg_mat, attn_mask, output_attentions)
        rows, *weights = out if output_attentions else (out,)
        rows = self.preconditioner(rows.permute(1, 2, 0, 3)).permute(2, 0, 1, 3)
        return (rows, *weights) if output_attentions else rows


@register_named("transformers.models.xlnet.modeling_xlnet.XLNetRelativeAttention")
class XLNetSwap(KnownTextSwap):
    """No module is called with the heads' outputs."""

    original = xlnet.XLNetRelativeAttention
    replacement = PreconditionedXLNetRelativeAttention
    methods: ClassVar = {"rel_attn_core": "0b68b04a22f45a9d"}  # transformers 5.23.0

    def shape(self, module: nn.Module) -> HeadShape:
        """From the module's attributes."""
        return heads_of(module)
