"""Softmax attention approximated through landmarks (Nystromformer)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .._checks import check_integer
from .._symbolic import one_node
from ..config import PreconditionConfig
from ..ops.autocast import without_autocast
from ._attention import PAPER, AttentionLayer, check_key_padding_mask, split_qkv


class NystromAttention(AttentionLayer):
    r"""`proj(concat_h (C_h A_h + conv(v_h)))` with `A_h = F Z (G v_h)`, linear in the number of tokens.

    With `m` landmarks `ql` and `kl`, the means of `q` and `k` over segments of tokens:
    `F = softmax(q kl^T / sqrt(d))`, `W = softmax(ql kl^T / sqrt(d))`, `G = softmax(ql k^T / sqrt(d))`, and `Z` is
    :func:`iterative_pinv` of `W`. `conv` is the optional skip, one filter per head along the tokens, the same for
    all channels of the head. `C_h` has one norm per token per head and comes before the skip is added, or after it with
    ``PreconditionConfig(placement="post_skip")``: `C_h (A_h + conv(v_h))`. Plain: without the `C_h`.

    Segments are counted over the tokens that are not padding, so padding changes nothing for the others, and need not
    be of equal length: token `i` of `n` belongs to segment ``floor(i m / n)``. A sample of at most `m` tokens has
    exact softmax attention. The result for a sample never depends on the other samples of its batch. Everything is
    computed in at least float32, whatever autocast says.

    Args:
        dim: width of the input and of the output, a multiple of ``num_heads``.
        num_heads: number of heads.
        num_landmarks: `m`.
        pinv_iterations: of :func:`iterative_pinv`.
        conv_kernel_size: taps of the skip, an odd number; None: no skip.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        proj_drop: dropout of the output.
        precondition: the method's options; None: plain attention.
        device, dtype: of the parameters.

    Raises:
        ValueError, TypeError: a size or an option does not fit; the message names it.

    Source: Xiong et al., "Nystromformer", 2021, and its released code, which divides by a maximum over the whole batch
    where this divides per matrix, averages padded tokens into the landmarks, and needs lengths that are multiples of
    `m`; arXiv 2603.27153 for `C`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        num_landmarks: int = 64,
        pinv_iterations: int = 6,
        conv_kernel_size: int | None = None,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
        precondition: PreconditionConfig | None = PAPER,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            dim,
            num_heads,
            proj_drop=proj_drop,
            precondition=precondition,
            value_skip=conv_kernel_size is not None,
            device=device,
            dtype=dtype,
        )
        self.num_landmarks = check_integer("num_landmarks", num_landmarks, minimum=1)
        self.pinv_iterations = check_integer("pinv_iterations", pinv_iterations, minimum=1)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, device=device, dtype=dtype)
        self.conv: nn.Conv2d | None = None
        if conv_kernel_size is not None:
            if check_integer("conv_kernel_size", conv_kernel_size, minimum=1) % 2 == 0:
                raise ValueError(f"conv_kernel_size must be odd, to keep the number of tokens; got {conv_kernel_size}")
            self.conv = nn.Conv2d(
                num_heads,
                num_heads,
                (conv_kernel_size, 1),
                padding=(conv_kernel_size // 2, 0),
                groups=num_heads,
                bias=False,
                device=device,
                dtype=dtype,
            )

    @one_node
    def forward(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            x: ``(B, N, dim)``.
            key_padding_mask: ``(B, N)`` boolean, True where a token is padding. The heads' outputs of padded tokens
                are zero.

        Returns:
            The shape of ``x``.

        Raises:
            ValueError, TypeError: ``x`` or ``key_padding_mask`` does not fit; the message says what was expected.
        """
        self._check_input(x)
        q, k, v = split_qkv(self.qkv(x), self.head_dim)
        padding = None
        if key_padding_mask is not None:
            check_key_padding_mask(key_padding_mask, x)
            padding = key_padding_mask[:, None, :, None]
            q, k, v = (part.masked_fill(padding, 0.0) for part in (q, k, v))
        with without_autocast(x.device.type):
            wide = torch.promote_types(q.dtype, torch.float32)
            rows = self._rows(q.to(wide), k.to(wide), v.to(wide), key_padding_mask).to(v.dtype)
        return self._merge(self._with_skip(rows, v, padding))

    def _with_skip(self, rows: Tensor, v: Tensor, padding: Tensor | None) -> Tensor:
        """`C A`, with the convolution of the values added before or after `C`."""
        if self.conv is None:
            return self._precondition(rows)
        skip = self.conv(v)
        if padding is not None:
            skip = skip.masked_fill(padding, 0.0)
        preconditioner = self._preconditioner()
        if preconditioner is not None and preconditioner.config.placement == "post_skip":
            return preconditioner(rows + skip)
        return self._precondition(rows) + skip

    def _rows(self, q: Tensor, k: Tensor, v: Tensor, padding: Tensor | None) -> Tensor:
        """`A`, ``(B, H, N, d)``; zero rows for padded tokens."""
        length = q.shape[-2]
        valid = torch.ones(1, length, dtype=torch.bool, device=q.device) if padding is None else ~padding
        segments = _segments(valid, self.num_landmarks).to(q.dtype).unsqueeze(1)  # (B or 1, 1, N, m)
        means = (segments / segments.sum(dim=-2, keepdim=True).clamp_min(1.0)).transpose(-2, -1)
        q = q * self.head_dim**-0.5
        q_landmarks, k_landmarks = means @ q, means @ k
        scores = q_landmarks @ k.transpose(-2, -1)
        # the smallest number, not -inf: a sample may be padding alone, and its values are zero
        scores = scores.masked_fill(~valid[:, None, None, :], torch.finfo(scores.dtype).min)
        landmark_rows = scores.softmax(dim=-1) @ v
        if length <= self.num_landmarks:
            return segments @ landmark_rows  # every token is its own landmark
        f, w = ((x @ k_landmarks.transpose(-2, -1)).softmax(dim=-1) for x in (q, q_landmarks))
        approximate = f @ (iterative_pinv(w, self.pinv_iterations) @ landmark_rows)
        if padding is None:
            return approximate
        few = valid.sum(dim=-1)[:, None, None, None] <= self.num_landmarks
        return torch.where(few, segments @ landmark_rows, approximate.masked_fill(padding[:, None, :, None], 0.0))


def iterative_pinv(w: Tensor, iterations: int) -> Tensor:
    r"""An approximate pseudo-inverse of each matrix of ``w``: `Z_0 = w^T / (|w|_1 |w|_inf)`, then

    `Z <- Z (13 I - wZ (15 I - wZ (7 I - wZ))) / 4`.

    For an invertible matrix the residual `E_k = I - w Z_k` is a polynomial in the symmetric `w w^T` with
    `E_{k+1} = (3 E_k^3 + E_k^4) / 4`, so `|E_k|_2 <= (1 - s_min^2 / (|w|_1 |w|_inf))^(3^k)` with `s_min` the smallest
    singular value. Directions that `w` does not have stay zero.

    Args:
        w: ``(..., m, m)``, entries not negative, as those of a softmax.
        iterations: how many; the published number is 6.

    Source: Razavi et al., "A new iterative method for finding approximate inverses of complex matrices", 2014; Xiong
    et al. 2021.
    """
    column_sum = w.sum(dim=-2).amax(dim=-1)
    row_sum = w.sum(dim=-1).amax(dim=-1)
    z = w.transpose(-2, -1) / (column_sum * row_sum)[..., None, None]
    identity = torch.eye(w.shape[-1], dtype=w.dtype, device=w.device)
    for _ in range(iterations):
        wz = w @ z
        z = z @ (13 * identity - wz @ (15 * identity - wz @ (7 * identity - wz))) / 4
    return z


def _segments(valid: Tensor, num_landmarks: int) -> Tensor:
    """Which segment each token belongs to, ``(B, N) -> (B, N, m)`` boolean; padded tokens belong to none."""
    place = valid.cumsum(dim=-1) - 1
    segment = place * num_landmarks // valid.sum(dim=-1, keepdim=True).clamp_min(1)
    numbers = torch.arange(num_landmarks, device=valid.device)
    return (segment[..., None] == numbers) & valid[..., None]
