"""transformers: Nystromformer, which adds a convolution of the values to its heads' outputs."""

from __future__ import annotations

import math
from typing import ClassVar

from torch import Tensor, nn
from transformers.models.nystromformer import modeling_nystromformer as nystromformer

from ....layers import Preconditioner
from ...adapter import HeadShape
from ...registry import register_named
from ..known_text_swap import KnownTextSwap
from .head_shapes import heads_of


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


def _masked_softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    return (scores if mask is None else scores + mask).softmax(dim=-1)


@register_named("transformers.models.nystromformer.modeling_nystromformer.NystromformerSelfAttention")
class NystromformerSwap(KnownTextSwap):
    """Its skip is added before any module is called with the heads' outputs."""

    original = nystromformer.NystromformerSelfAttention
    replacement = PreconditionedNystromformerSelfAttention
    methods: ClassVar = {"forward": "cf02f8de4863ac55"}  # transformers 5.23.0
    value_skip = True

    def shape(self, module: nn.Module) -> HeadShape:
        """From the module's attributes."""
        return heads_of(module)
