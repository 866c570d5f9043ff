"""The encoder of Nystromformer's runs on the Long Range Arena.

Token and position embeddings, pre-norm blocks of attention and a two-layer perceptron, a last norm, the sum of the
tokens over the number of positions, and a head with one hidden layer. Two inputs (is one document near the other?) go
through one encoder, and the head reads `[u, v, u v, u - v]`.

Source: Y. Xiong et al., Nystromformer, AAAI 2021, and its released code. Different here: see
:class:`preconditioned_attention.layers.NystromAttention`; padding has the id 0 in both.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..._checks import check_integer, check_number
from ...config import check_choice
from ...layers import MultiheadAttention, NystromAttention

Attention = Literal["nystrom", "softmax"]
ATTENTIONS: tuple[str, ...] = get_args(Attention)
PADDING = 0
HEAD_DIM = 128


class LongRangeEncoder(nn.Module):
    """From ids to the logits of classes.

    Args:
        vocabulary: number of ids; 0 is padding.
        positions: the longest input, and what the sum over tokens is divided by.
        classes: how many logits.
        inputs: 1, or 2 for pairs.
        attention: ``"nystrom"``, or exact attention, ``"softmax"``, which has no convolution of the values and drops
            attention weights.
        depth: blocks.
        dim: width; a multiple of ``num_heads``.
        num_heads: attention heads per block.
        mlp_dim: hidden width of the perceptrons.
        num_landmarks: of Nystrom attention.
        conv_kernel_size: taps of its convolution of the values; odd.
        dropout: after embeddings, attention and perceptron, within the perceptron, and of exact attention's weights.

    Raises:
        ValueError, TypeError: a size or an option does not fit; the message names it.
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        positions: int,
        classes: int,
        inputs: int = 1,
        attention: Attention = "nystrom",
        depth: int = 2,
        dim: int = 64,
        num_heads: int = 2,
        mlp_dim: int = 128,
        num_landmarks: int = 64,
        conv_kernel_size: int = 35,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        check_choice("attention", attention, ATTENTIONS)
        check_number("dropout", dropout, below=1.0)
        if inputs not in (1, 2):
            raise ValueError(f"inputs must be 1 or 2; got {inputs!r}")
        for name, size in (("vocabulary", vocabulary), ("positions", positions), ("depth", depth)):
            check_integer(name, size, minimum=1)
        self.inputs = inputs
        self.tokens = nn.Embedding(vocabulary, dim)
        self.places = nn.Embedding(positions, dim)
        for embedding in (self.tokens, self.places):
            nn.init.normal_(embedding.weight, std=0.02)
        self.dropout = nn.Dropout(dropout)
        blocks = []
        for _ in range(depth):
            if attention == "nystrom":
                own: NystromAttention | MultiheadAttention = NystromAttention(
                    dim,
                    num_heads,
                    num_landmarks=num_landmarks,
                    conv_kernel_size=conv_kernel_size,
                    proj_drop=dropout,
                    precondition=None,
                )
            else:
                own = MultiheadAttention(dim, num_heads, attn_drop=dropout, proj_drop=dropout, precondition=None)
            blocks.append(_Block(own, dim, mlp_dim, dropout))
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(dim)
        width = dim if inputs == 1 else 4 * dim
        self.head = nn.Sequential(nn.Linear(width, HEAD_DIM), nn.ReLU(), nn.Linear(HEAD_DIM, classes))

    def forward(self, ids: Tensor, other: Tensor | None = None) -> Tensor:
        """The logits, ``(B, classes)``.

        Args:
            ids: int64 ``(B, N)``, 0 where there is padding, at any place.
            other: the second input of a pair, ``(B, M)``.

        Raises:
            ValueError: more tokens than positions, or another number of inputs than the model was built for.
        """
        if (other is None) != (self.inputs == 1):
            raise ValueError(f"the model was built for {self.inputs} input(s); got {1 if other is None else 2}")
        u = self._encode(ids)
        if other is None:
            return self.head(u)
        v = self._encode(other)
        return self.head(torch.cat([u, v, u * v, u - v], dim=-1))

    def _encode(self, ids: Tensor) -> Tensor:
        """The sum of the tokens that are no padding over the number of positions, ``(B, dim)``."""
        positions = self.places.num_embeddings
        if ids.ndim != 2 or ids.shape[1] > positions:
            raise ValueError(f"ids must have shape (B, N) with at most {positions} tokens; got {tuple(ids.shape)}")
        padding = ids == PADDING
        x = self.dropout(self.tokens(ids) + self.places.weight[: ids.shape[1]])
        for block in self.blocks:
            x = block(x, padding)
        return self.norm(x).masked_fill(padding[..., None], 0.0).sum(dim=1) / positions


class _Block(nn.Module):
    """`x + attention(norm(x))`, then `x + mlp(norm(x))`."""

    def __init__(
        self, attention: NystromAttention | MultiheadAttention, dim: int, mlp_dim: int, dropout: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attention
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, mlp_dim)
        self.fc2 = nn.Linear(mlp_dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        y = self.norm1(x)
        if isinstance(self.attn, NystromAttention):
            x = x + self.attn(y, key_padding_mask=padding)
        else:
            x = x + self.attn(y, attn_mask=~padding[:, None, None, :])
        return x + self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(self.norm2(x))))))
