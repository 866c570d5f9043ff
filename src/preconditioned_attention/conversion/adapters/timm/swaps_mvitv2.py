"""timm: MViTv2's attention, which adds its query to the heads' outputs before any module is called with them."""

from __future__ import annotations

from typing import ClassVar

from timm.models import mvitv2
from torch import Tensor, nn

from ...._symbolic import one_node
from ....layers import Preconditioner
from ...registry import register_named
from ..known_text_swap import RequiredTextSwap


class PreconditionedMultiScaleAttention(mvitv2.MultiScaleAttention):
    """MViTv2's attention: `C` before the pooled query is added to the heads (residual pooling)."""

    preconditioner: Preconditioner

    @one_node
    def forward(self, x: Tensor, feat_size: list[int]) -> tuple[Tensor, list[int]]:
        """As upstream; ``(B, N, C)`` and the map's size in, ``(B, N', dim_out)`` and its size out."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        q, q_size = self._pooled(q, self.pool_q, self.norm_q, feat_size)
        k, k_size = self._pooled(k, self.pool_k, self.norm_k, feat_size)
        v, _ = self._pooled(v, self.pool_v, self.norm_v, feat_size)
        scores = (q * self.scale) @ k.transpose(-2, -1)
        if self.rel_pos_type == "spatial":
            scores = mvitv2.cal_rel_pos_type(
                scores, q, self.has_cls_token, q_size, k_size, self.rel_pos_h, self.rel_pos_w
            )
        heads = self.preconditioner(scores.softmax(dim=-1) @ v)
        if self.residual_pooling:
            heads = heads + q
        return self.proj(heads.transpose(1, 2).flatten(2)), q_size

    def _pooled(
        self, x: Tensor, pool: nn.Module | None, norm: nn.Module | None, size: list[int]
    ) -> tuple[Tensor, list[int]]:
        """Queries, keys or values ``(B, H, N, d)`` pooled over the map but for the class token; the map's size."""
        if pool is not None:
            x, class_token = mvitv2.reshape_pre_pool(x, size, self.has_cls_token)
            x, size = mvitv2.reshape_post_pool(pool(x), self.num_heads, class_token)
        return x if norm is None else norm(x), size


@register_named("timm.models.mvitv2.MultiScaleAttention")
class MultiScaleAttentionSwap(RequiredTextSwap):
    """Residual pooling adds the query to the heads before the projection."""

    original = mvitv2.MultiScaleAttention
    replacement = PreconditionedMultiScaleAttention
    methods: ClassVar = {"forward": "a69bd66e9ccef67a"}
    read_in = "timm 1.0.31"
