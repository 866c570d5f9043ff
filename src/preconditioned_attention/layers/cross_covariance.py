"""Attention between channels by their cross-covariance over the tokens (XCiT)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._symbolic import one_node
from ..config import PreconditionConfig
from ._attention import PAPER, AttentionLayer, split_qkv


class CrossCovarianceAttention(AttentionLayer):
    r"""`proj(concat_h C_h A_h)` with `A_h = v_h softmax(t_h qn_h^T kn_h)^T`, whose rows are tokens.

    `qn_h` and `kn_h` are `q_h` and `k_h` with columns (one channel over all tokens) of unit length, `t_h` is a learned
    temperature, and the softmax is over `d x d` channels. The paper writes the product transposed, `d x N`; `C_h` acts
    on its transpose, `A_h` of shape `(N, d)`, with one norm per token per head. Plain: without the `C_h`.

    Args:
        dim: width of the input and of the output, a multiple of ``num_heads``.
        num_heads: number of heads.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        attn_drop: dropout of the channels' attention weights, before the norm.
        proj_drop: dropout of the output.
        precondition: the method's options; None: plain attention.
        device, dtype: of the parameters.

    Raises:
        ValueError, TypeError: a size or an option does not fit; the message names it.

    Source: El-Nouby et al., "XCiT: Cross-Covariance Image Transformers", 2021; arXiv 2603.27153 for `C`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        qkv_bias: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        precondition: PreconditionConfig | None = PAPER,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, num_heads, proj_drop=proj_drop, precondition=precondition, device=device, dtype=dtype)
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1, device=device, dtype=dtype))
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, device=device, dtype=dtype)
        self.attn_drop = nn.Dropout(attn_drop)

    @one_node
    def forward(self, x: Tensor) -> Tensor:
        """``(B, N, dim)`` to the same shape. Every token contributes to the norms, so padding is not supported.

        Raises:
            ValueError: ``x`` has another shape.
        """
        self._check_input(x)
        q, k, v = split_qkv(self.qkv(x), self.head_dim)
        q, k = F.normalize(q, dim=-2), F.normalize(k, dim=-2)
        weights = self.attn_drop((q.transpose(-2, -1) @ k * self.temperature).softmax(dim=-1))
        return self._merge(self._precondition(v @ weights.transpose(-2, -1)))
