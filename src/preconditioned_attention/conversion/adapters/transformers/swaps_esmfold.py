"""transformers: ESMFold, whose attention gates its heads before any module is called with them."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers.models.esm import modeling_esmfold as esmfold

from ....layers import Preconditioner
from ...adapter import HeadShape
from ...registry import register_named
from ..known_text_swap import KnownTextSwap
from .head_shapes import heads_of


class PreconditionedEsmFoldAttention(esmfold.EsmFoldAttention):
    """ESMFold's attention along the rows and columns of the pair representation."""

    preconditioner: Preconditioner

    def _wrap_up(self, o: Tensor, q_x: Tensor) -> Tensor:
        """As upstream, with every head's output (..., N, H, d) preconditioned."""
        return super()._wrap_up(self.preconditioner(o.transpose(-3, -2)).transpose(-3, -2), q_x)


class PreconditionedEsmFoldSelfAttention(esmfold.EsmFoldSelfAttention):
    """ESMFold's attention over the sequence, biased by pairs."""

    preconditioner: Preconditioner

    def forward(
        self, x: Tensor, mask: Tensor | None = None, bias: Tensor | None = None, indices: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As upstream: output (B, N, E) and weights (B, N, H, N); ``indices`` is not used there either."""
        q, k, v = self.proj(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2).chunk(3, dim=-1)
        scores = (q * self.rescale_factor) @ k.transpose(-2, -1)
        if bias is not None:
            scores = scores + bias.permute(0, 3, 1, 2)
        if mask is not None:
            scores = scores.masked_fill(~mask.bool()[:, None, None], -torch.inf)
        weights = scores.softmax(dim=-1)
        merged = self.preconditioner(weights @ v).transpose(1, 2).flatten(2)
        if self.gated:
            merged = self.g_proj(x).sigmoid() * merged
        return self.o_proj(merged), weights.permute(0, 3, 1, 2)


@register_named("transformers.models.esm.modeling_esmfold.EsmFoldAttention")
class EsmFoldSwap(KnownTextSwap):
    """Along the rows and columns of the pair representation."""

    original = esmfold.EsmFoldAttention
    replacement = PreconditionedEsmFoldAttention
    methods: ClassVar = {"forward": "dadea9145299f780"}  # transformers 5.23.0

    def shape(self, module: nn.Module) -> HeadShape:
        """From the module's attributes."""
        return heads_of(module)


@register_named("transformers.models.esm.modeling_esmfold.EsmFoldSelfAttention")
class EsmFoldSelfSwap(KnownTextSwap):
    """Over the sequence."""

    original = esmfold.EsmFoldSelfAttention
    replacement = PreconditionedEsmFoldSelfAttention
    methods: ClassVar = {"forward": "c2aca621d8bc6516"}  # transformers 5.23.0

    def shape(self, module: nn.Module) -> HeadShape:
        """From the module's attributes."""
        return heads_of(module)
