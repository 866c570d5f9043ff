"""transformers: WavLM, which passes its projection's weight to a function."""

from __future__ import annotations

import math
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.wavlm import modeling_wavlm as wavlm

from ....layers import Preconditioner
from ...adapter import HeadShape
from ...registry import register_named
from ..known_text_swap import KnownTextSwap
from .head_shapes import heads_of


class PreconditionedWavLMAttention(wavlm.WavLMAttention):
    """WavLM's attention without `F.multi_head_attention_forward`, which takes the projection's weight inside."""

    preconditioner: Preconditioner

    def torch_multi_head_self_attention(
        self, hidden_states: Tensor, attention_mask: Tensor | None, gated_position_bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As upstream: output (B, N, E) and weights averaged over the heads, repeated for each of them."""
        q, k, v = (
            layer(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        scores = (q * self.scaling) @ k.transpose(-2, -1) + gated_position_bias.unflatten(0, (-1, self.num_heads))
        if attention_mask is not None:
            scores = scores.masked_fill(attention_mask.ne(1)[:, None, None], -math.inf)
        weights = F.dropout(scores.softmax(dim=-1), self.dropout, training=self.training)
        heads = self.preconditioner(weights @ v)
        return self.out_proj(heads.transpose(1, 2).flatten(2)), weights.mean(dim=1, keepdim=True).expand_as(weights)


@register_named("transformers.models.wavlm.modeling_wavlm.WavLMAttention")
class WavLMSwap(KnownTextSwap):
    """`F.multi_head_attention_forward` projects."""

    original = wavlm.WavLMAttention
    replacement = PreconditionedWavLMAttention
    methods: ClassVar = {"torch_multi_head_self_attention": "c2f4d2858fce5f5d"}  # transformers 5.23.0

    def shape(self, module: nn.Module) -> HeadShape:
        """From the module's attributes."""
        return heads_of(module)
