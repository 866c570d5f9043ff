"""torchvision: MViT, which adds the queries to the heads' outputs before it projects."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor
from torchvision.models.video import mvit

from ...._symbolic import one_node
from ....layers import Preconditioner
from ...registry import register_named
from ..known_text_swap import KnownTextSwap


class PreconditionedMultiscaleAttention(mvit.MultiscaleAttention):
    """`MultiscaleAttention` of MViT; residual pooling adds the queries after the rows are scaled."""

    preconditioner: Preconditioner

    @one_node
    def forward(self, x: Tensor, thw: tuple[int, int, int]) -> tuple[Tensor, tuple[int, int, int]]:
        """As upstream; ``(B, N, C)``, the class token first, and the grid of the other tokens."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).transpose(1, 3).unbind(dim=2)
        k, k_thw = (k, thw) if self.pool_k is None else self.pool_k(k, thw)
        v = v if self.pool_v is None else self.pool_v(v, thw)[0]
        q, q_thw = (q, thw) if self.pool_q is None else self.pool_q(q, thw)
        scores = (self.scaler * q) @ k.transpose(2, 3)
        if self.rel_pos_h is not None and self.rel_pos_w is not None and self.rel_pos_t is not None:
            scores = mvit._add_rel_pos(scores, q, q_thw, k_thw, self.rel_pos_h, self.rel_pos_w, self.rel_pos_t)
        rows = self.preconditioner(scores.softmax(dim=-1) @ v)
        if self.residual_pool:
            # not in place, unlike upstream: observers of the preconditioner keep these rows
            rows = rows + (q if self.residual_with_cls_embed else F.pad(q[:, :, 1:], (0, 0, 1, 0)))
        return self.project(rows.transpose(1, 2).flatten(2)), q_thw


@register_named("torchvision.models.video.mvit.MultiscaleAttention")
class MultiscaleSwap(KnownTextSwap):
    """No module is called with the heads' outputs."""

    original = mvit.MultiscaleAttention
    replacement = PreconditionedMultiscaleAttention
    methods: ClassVar = {"forward": "ab6d6ffa46b85812"}  # torchvision 0.29.1
