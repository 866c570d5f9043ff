"""transformers: three attention classes of protein models that gate their heads before any module sees them.

Imported by `tables` when a model holds one of them. Each replacement was written against one text of the
method that it stands in for; any other text is not served.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.models.esm import modeling_esmfold as esmfold
from transformers.models.esmfold2 import modeling_esmfold2 as esmfold2

from ....layers import Preconditioner
from .tables import KnownSwap


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


class EsmFoldSwap(KnownSwap):
    """ESMFold, pairs."""

    original = esmfold.EsmFoldAttention
    replacement = PreconditionedEsmFoldAttention
    method = "forward"
    known = "dadea9145299f780"


class EsmFoldSelfSwap(KnownSwap):
    """ESMFold, sequence."""

    original = esmfold.EsmFoldSelfAttention
    replacement = PreconditionedEsmFoldSelfAttention
    method = "forward"
    known = "c2aca621d8bc6516"


class MSASwap(KnownSwap):
    """ESMFold2, alignment."""

    original = esmfold2.EsmFold2MSAPairWeightedAveraging
    replacement = PreconditionedMSAPairWeightedAveraging
    method = "forward"
    known = "36fc00e42016254f"


_SWAPS: tuple[KnownSwap, ...] = (EsmFoldSwap(), EsmFoldSelfSwap(), MSASwap())


def find(cls: type[nn.Module]) -> KnownSwap | None:
    """The swap that serves ``cls``, or None."""
    return next((swap for swap in _SWAPS if swap.serves(cls, swap.original)), None)
