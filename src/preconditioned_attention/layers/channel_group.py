"""Attention between the channels of a group, with the whole image as the feature of each (DaViT)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .._symbolic import one_node
from ..config import PreconditionConfig
from ._attention import PAPER, AttentionLayer, split_qkv


class ChannelGroupAttention(AttentionLayer):
    r"""`proj(concat_g C_g A_g)` with `A_g = (softmax(q_g^T k_g / sqrt(d)) v_g^T)^T`, for each group of `d` channels.

    The softmax is over `d x d` channels; rows of `A_g`, of shape `(N, d)`, are tokens, and `C_g` has one norm per token
    per group. Plain: without the `C_g`. The letters are the paper's. The released code (and timm's `ChannelAttention`)
    gives the same three parts of ``qkv`` other roles: what it calls `k, v, q` are `q, k, v` here.

    Args:
        dim: width of the input and of the output, a multiple of ``num_heads``.
        num_heads: number of groups.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        precondition: the method's options; None: plain attention.
        device, dtype: of the parameters.

    Raises:
        ValueError, TypeError: a size or an option does not fit; the message names it.

    Source: Ding et al., "DaViT: Dual Attention Vision Transformers", 2022; arXiv 2603.27153 for `C`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        qkv_bias: bool = False,
        precondition: PreconditionConfig | None = PAPER,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, num_heads, precondition=precondition, device=device, dtype=dtype)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, device=device, dtype=dtype)

    @one_node
    def forward(self, x: Tensor) -> Tensor:
        """``(B, N, dim)`` to the same shape. Every token contributes to the scores, so padding is not supported.

        Raises:
            ValueError: ``x`` has another shape.
        """
        self._check_input(x)
        q, k, v = split_qkv(self.qkv(x), self.head_dim)
        weights = (q.transpose(-2, -1) * self.head_dim**-0.5 @ k).softmax(dim=-1)
        return self._merge(self._precondition(v @ weights.transpose(-2, -1)))
