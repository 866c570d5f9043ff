"""Attention inside windows of an image, with a learned bias for every relative position."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .._checks import check_integer
from .._symbolic import one_node
from ..config import PreconditionConfig
from ._attention import PAPER, AttentionLayer, split_qkv


class WindowAttention(AttentionLayer):
    r"""`proj(concat_h C_h A_h)` with `A_h = softmax(q_h k_h^T / sqrt(d) + b_h + mask) v_h` inside each window.

    `b_h[i, j]` is an entry of a learned table, picked by where `j` lies relative to `i`. `C_h` has one norm per token
    of each window; plain: without the `C_h`. Partitioning, shifting and reversing windows is up to the caller.

    Args:
        dim: width of the input and of the output.
        window_size: height and width of a window, or one number for both.
        num_heads: number of heads.
        head_dim: width of a head; None: ``dim // num_heads``.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        attn_drop: dropout of the attention weights, before the norm.
        proj_drop: dropout of the output.
        precondition: the method's options; None: plain attention.
        device, dtype: of the parameters.

    Raises:
        ValueError, TypeError: a size or an option does not fit; the message names it.

    Source: Liu et al., "Swin Transformer", 2021; arXiv 2603.27153 for `C`.
    """

    fused = True

    relative_position_index: Tensor

    def __init__(
        self,
        dim: int,
        window_size: int | tuple[int, int],
        num_heads: int,
        *,
        head_dim: int | None = None,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        precondition: PreconditionConfig | None = PAPER,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            dim,
            num_heads,
            head_dim=head_dim,
            proj_drop=proj_drop,
            precondition=precondition,
            device=device,
            dtype=dtype,
        )
        self.window_size = height, width = _pair(window_size)
        self.qkv = nn.Linear(dim, 3 * num_heads * self.head_dim, bias=qkv_bias, device=device, dtype=dtype)
        self.attn_drop = nn.Dropout(attn_drop)
        table = torch.empty((2 * height - 1) * (2 * width - 1), num_heads, device=device, dtype=dtype)
        self.relative_position_bias_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))
        index = _relative_position_index(height, width, device)
        self.register_buffer("relative_position_index", index, persistent=False)

    @one_node
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend inside each window.

        Args:
            x: ``(B * num_windows, N, dim)`` with `N` the number of tokens in a window, the windows of an image next
                to each other.
            mask: ``(num_windows, N, N)``, for shifted windows; boolean (True: attend) or added to the scores.

        Returns:
            The shape of ``x``.

        Raises:
            ValueError, TypeError: ``x`` or ``mask`` does not fit; the message says what was expected.
        """
        self._check_input(x)
        area = math.prod(self.window_size)
        if x.shape[1] != area:
            raise ValueError(f"x must have N = {area} tokens, a window of {self.window_size}; got {tuple(x.shape)}")
        q, k, v = split_qkv(self.qkv(x), self.head_dim)
        dropout_p = self.attn_drop.p if self.training else 0.0
        return self._merge(self._attend(q, k, v, attn_mask=self._bias(x, mask), dropout_p=dropout_p))

    def _bias(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """What is added to the scores: ``(1, H, N, N)``, or ``(B * num_windows, H, N, N)`` with a mask."""
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        if mask is None:
            return bias.unsqueeze(0)
        if mask.dtype != torch.bool and not mask.is_floating_point():
            raise TypeError(f"mask must be boolean (True: attend) or floating point (added); got {mask.dtype}")
        if mask.dim() != 3 or mask.shape[1:] != bias.shape[1:] or mask.shape[0] < 1 or x.shape[0] % mask.shape[0]:
            raise ValueError(
                f"mask must have shape (num_windows, N, N) with N = {bias.shape[-1]} and num_windows a divisor of "
                f"{x.shape[0]}; got {tuple(mask.shape)}"
            )
        each = mask.unsqueeze(1)
        biases = bias.masked_fill(~each, -math.inf) if mask.dtype == torch.bool else bias + each.to(bias.dtype)
        return biases.repeat(x.shape[0] // mask.shape[0], 1, 1, 1)


def _pair(window_size: int | tuple[int, int]) -> tuple[int, int]:
    sizes = window_size if isinstance(window_size, tuple) else (window_size, window_size)
    if len(sizes) != 2:
        raise ValueError(f"window_size must be a number or (height, width); got {window_size!r}")
    height, width = (check_integer("window_size", size, minimum=1) for size in sizes)
    return height, width


def _relative_position_index(height: int, width: int, device: torch.device | str | None) -> Tensor:
    """Which row of the table belongs to which pair of tokens: ``(N, N)``."""
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    row, column = (grid.flatten() for grid in torch.meshgrid(rows, columns, indexing="ij"))
    down, right = (place[:, None] - place[None, :] for place in (row, column))
    return (down + height - 1) * (2 * width - 1) + right + width - 1
