"""transformers: ESMFold2, whose attention over an alignment gates its heads before any module is called with them."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers.models.esmfold2 import modeling_esmfold2 as esmfold2

from ....layers import Preconditioner
from ...adapter import HeadShape
from ...registry import register_named
from ..known_text_swap import KnownTextSwap
from .head_shapes import heads_of


class PreconditionedMSAPairWeightedAveraging(esmfold2.EsmFold2MSAPairWeightedAveraging):
    """ESMFold2's attention over an alignment, whose weights come from pairs of tokens."""

    preconditioner: Preconditioner

    def forward(self, msa_states: Tensor, pair_states: Tensor, pair_attention_mask: Tensor) -> Tensor:
        """As upstream: (B, N, M, E) in and out, pairs (B, N, N, P) and their mask (B, N, N)."""
        states = self.norm_single(msa_states)
        scores = self.bias_proj(self.bias_norm(pair_states))
        scores = scores.masked_fill(~pair_attention_mask.unsqueeze(-1), torch.finfo(scores.dtype).min)
        weights = scores.softmax(dim=-2, dtype=torch.float32).to(scores.dtype)
        values, gate = (
            layer(states).unflatten(-1, (self.num_attention_heads, -1)) for layer in (self.v_proj, self.gate_proj)
        )
        rows = torch.einsum("bijh,bjmhd->bmhid", weights, values)
        merged = self.preconditioner(rows).permute(0, 3, 1, 2, 4) * gate.sigmoid()
        return self.o_proj(merged.flatten(-2))


@register_named("transformers.models.esmfold2.modeling_esmfold2.EsmFold2MSAPairWeightedAveraging")
class MSASwap(KnownTextSwap):
    """Its weights come from pairs of tokens."""

    original = esmfold2.EsmFold2MSAPairWeightedAveraging
    replacement = PreconditionedMSAPairWeightedAveraging
    methods: ClassVar = {"forward": "36fc00e42016254f"}  # transformers 5.23.0

    def shape(self, module: nn.Module) -> HeadShape:
        """From the module's attributes."""
        return heads_of(module)
