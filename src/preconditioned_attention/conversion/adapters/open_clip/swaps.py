"""open_clip: the attention pooling of its ResNets."""

from __future__ import annotations

from typing import ClassVar

import torch
from open_clip import modified_resnet as upstream
from torch import Tensor, nn

from ....layers import Preconditioner
from ...adapter import HeadShape, read_int
from ...registry import register_named
from ..known_text_swap import KnownTextSwap


class PreconditionedAttentionPool2d(upstream.AttentionPool2d):
    """`AttentionPool2d` whose heads' outputs pass through its preconditioner."""

    preconditioner: Preconditioner

    def forward(self, x: Tensor) -> Tensor:
        """As upstream: ``(B, C, H, W)`` in, ``(B, output_dim)`` out; the one query is the mean of all positions."""
        tokens = x.flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
        tokens = tokens + self.positional_embedding.to(tokens.dtype)
        projected = (self.q_proj(tokens[:, :1]), self.k_proj(tokens), self.v_proj(tokens))
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in projected)
        return self.c_proj(self.preconditioner.attend(q, k, v).flatten(1))


@register_named("open_clip.modified_resnet.AttentionPool2d")
class AttentionPoolSwap(KnownTextSwap):
    """Upstream passes its projections to a function."""

    kind = "pooling"
    honors_backend = True
    original = upstream.AttentionPool2d
    replacement = PreconditionedAttentionPool2d
    methods: ClassVar = {"forward": "6b9e82cf44216015"}  # open_clip 3.3.0

    def shape(self, module: nn.Module) -> HeadShape:
        """From the number of heads and the width of the values."""
        heads, width = read_int(module, "num_heads"), read_int(module.v_proj, "out_features")
        return HeadShape(heads, width // heads if heads and width else None)
