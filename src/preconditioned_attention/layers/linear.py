"""Linear attention: the softmax replaced by a product of feature maps, so that the cost is linear in the tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._symbolic import one_node
from ..config import PreconditionConfig
from ..ops.autocast import without_autocast
from ._attention import PAPER, AttentionLayer, check_key_padding_mask, split_qkv

_CHUNK = 64  # tokens per step of causal attention


class LinearAttention(AttentionLayer):
    r"""`proj(concat_h C_h A_h)` with `(A_h)_i = sum_j phi(q_i).phi(k_j) v_j / sum_j phi(q_i).phi(k_j)`, phi = elu + 1.

    The sums are over all tokens, or over `j <= i` with ``is_causal``. `C_h` has one norm per token per head. A row
    and a positive multiple of it have the same unit row, so `C_h A_h` does not depend on the denominator; plain:
    without the `C_h`, and it does. The sums are taken in at least float32, whatever autocast says.

    Args:
        dim: width of the input and of the output, a multiple of ``num_heads``.
        num_heads: number of heads.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        proj_drop: dropout of the output.
        precondition: the method's options; None: plain attention.
        device, dtype: of the parameters.

    Raises:
        ValueError, TypeError: a size or an option does not fit; the message names it.

    Source: Katharopoulos et al., "Transformers are RNNs", 2020; arXiv 2603.27153 for `C`, whose rows are not those
    of softmax attention here: the definition, one norm per token per head, is this project's.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
        precondition: PreconditionConfig | None = PAPER,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, num_heads, proj_drop=proj_drop, precondition=precondition, device=device, dtype=dtype)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, device=device, dtype=dtype)

    @one_node
    def forward(self, x: Tensor, key_padding_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Attend.

        Args:
            x: ``(B, N, dim)``.
            key_padding_mask: ``(B, N)`` boolean, True where a token is padding, to which no query attends. A query
                that may attend to nothing has a zero row.
            is_causal: a token attends to itself and to what is before it.

        Returns:
            The shape of ``x``.

        Raises:
            ValueError, TypeError: ``x`` or ``key_padding_mask`` does not fit; the message says what was expected.
        """
        self._check_input(x)
        if key_padding_mask is not None:
            check_key_padding_mask(key_padding_mask, x)
        q, k, v = split_qkv(self.qkv(x), self.head_dim)
        with without_autocast(x.device.type):
            rows = _rows(q, k, v, key_padding_mask, is_causal).to(v.dtype)
        return self._merge(self._precondition(rows))


def _rows(q: Tensor, k: Tensor, v: Tensor, padding: Tensor | None, is_causal: bool) -> Tensor:
    """`A`, ``(B, H, N, d)``, in at least float32."""
    wide = torch.promote_types(q.dtype, torch.float32)
    q, k, v = _phi(q.to(wide)), _phi(k.to(wide)), v.to(wide)
    if padding is not None:
        k, v = (x.masked_fill(padding[:, None, :, None], 0.0) for x in (k, v))
    values = F.pad(v, (0, 1), value=1.0)  # the sum over ones is the denominator
    sums = _causal_sums(q, k, values) if is_causal else q @ (k.transpose(-2, -1) @ values)
    denominator = sums[..., -1:]
    # It is zero for a query that may attend to nothing, whose row then stays zero.
    return sums[..., :-1] / torch.where(denominator > 0, denominator, 1.0)


def _phi(x: Tensor) -> Tensor:
    """`elu(x) + 1`; as a sum with -1 in it, it would be zero where `exp(x)` is below the rounding of 1."""
    return x.relu() + x.clamp_max(0.0).exp()


def _causal_sums(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`sum_{j <= i} q_i.k_j v_j`: the scores inside a chunk, the running sum of `k^T v` before it."""
    length = q.shape[-2]
    fill = -length % _CHUNK
    q, k, v = (F.pad(x, (0, 0, 0, fill)).unflatten(-2, (-1, _CHUNK)) for x in (q, k, v))
    sums = (k.transpose(-2, -1) @ v).cumsum(dim=-3)
    before = F.pad(sums[..., :-1, :, :], (0, 0, 0, 0, 1, 0))
    out = q @ before + (q @ k.transpose(-2, -1)).tril() @ v
    return out.flatten(-3, -2)[..., :length, :]
