"""transformers: three attention classes in which no module sees the heads' outputs, so that each becomes a subclass.

Imported by `tables` when a model holds one of them, because it imports all three model files. Each
replacement was written against one text of the method that it stands in for; any other text is not served.
"""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.nystromformer import modeling_nystromformer as nystromformer
from transformers.models.wavlm import modeling_wavlm as wavlm
from transformers.models.xlnet import modeling_xlnet as xlnet

from ....layers import Preconditioner
from .tables import KnownSwap


class PreconditionedNystromformerSelfAttention(nystromformer.NystromformerSelfAttention):
    """Nystromformer's attention; `config.placement` says whether `C` comes before or after its convolution skip."""

    preconditioner: Preconditioner

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, output_attentions: bool = False
    ) -> tuple[Tensor, ...]:
        """As upstream: merged heads and, if asked for, weights."""
        q, k, v = (
            layer(hidden_states).unflatten(-1, (-1, self.attention_head_size)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        root = math.sqrt(math.sqrt(self.attention_head_size))
        rows, weights = self._rows(q / root, k / root, v, attention_mask)
        if self.conv_kernel_size is None:
            rows = self.preconditioner(rows)
        elif self.preconditioner.config.placement == "pre_skip":
            rows = self.preconditioner(rows) + self.conv(v)
        else:
            rows = self.preconditioner(rows + self.conv(v))
        merged = rows.transpose(1, 2).flatten(2)
        return (merged, weights) if output_attentions else (merged,)

    def _rows(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Every head's output (B, H, N, d) before the skip, and the weights that upstream returns."""
        if self.num_landmarks == self.seq_len:
            weights = _masked_softmax(q @ k.transpose(-2, -1), mask)
            return weights @ v, weights
        q_landmarks, k_landmarks = (x.unflatten(2, (self.num_landmarks, -1)).mean(dim=-2) for x in (q, k))
        first = (q @ k_landmarks.transpose(-2, -1)).softmax(dim=-1)
        middle = (q_landmarks @ k_landmarks.transpose(-2, -1)).softmax(dim=-1)
        last = _masked_softmax(q_landmarks @ k.transpose(-2, -1), mask)
        weights = first @ self.iterative_inv(middle)
        return weights @ (last @ v), weights


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


def _masked_softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    return (scores if mask is None else scores + mask).softmax(dim=-1)


class NystromformerSwap(KnownSwap):
    """Nystromformer, which adds a convolution of the values to its heads' outputs."""

    original = nystromformer.NystromformerSelfAttention
    replacement = PreconditionedNystromformerSelfAttention
    method = "forward"
    known = "cf02f8de4863ac55"
    value_skip = True


class WavLMSwap(KnownSwap):
    """WavLM."""

    original = wavlm.WavLMAttention
    replacement = PreconditionedWavLMAttention
    method = "torch_multi_head_self_attention"
    known = "c2f4d2858fce5f5d"


class XLNetSwap(KnownSwap):
    """XLNet."""

    original = xlnet.XLNetRelativeAttention
    replacement = PreconditionedXLNetRelativeAttention
    method = "rel_attn_core"
    known = "0b68b04a22f45a9d"


_SWAPS: tuple[KnownSwap, ...] = (NystromformerSwap(), WavLMSwap(), XLNetSwap())


def find(cls: type[nn.Module]) -> KnownSwap | None:
    """The swap that serves ``cls``, or None."""
    return next((swap for swap in _SWAPS if swap.serves(cls, swap.original)), None)
