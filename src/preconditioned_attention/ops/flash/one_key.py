r"""Rows that see one key: its weight is 1 whatever q and k are, so their gradients of q and k are zero.

The kernel forms `dS_j = P_j (<dout, v_j> - delta)`, with `delta = <dout, out>`. On such a row the two must cancel, and
do not where `dout` or `out` was rounded: by `out = 0` (gradient="full") what is left is `<G, v>`, which is 0 only until
`G` is rounded. But `A` of such a row is `v_j` itself, to the last bit: with that for `out` they cancel for any `dout`.

Float32 and float64 are not corrected where only some rows see one key: there it is the last bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..tracing import guard_or_false

LOW_PRECISION = (torch.float16, torch.bfloat16)


def every_row(is_causal: bool, queries: int, keys: int) -> bool:
    """Whether no row sees a second key, so that the gradients of q, k and a bias are zero."""
    return guard_or_false(keys == 1) or (is_causal and guard_or_false(queries == 1))


def first_row(out: Tensor | None, dout: Tensor, v: Tensor) -> Tensor:
    """``out``, without it zeros, with the row of the first query under a causal mask (upper left), which is `v_0`."""
    return with_first_value(torch.zeros_like(dout) if out is None else out, 0, v)


def with_first_value(out: Tensor, row: int, v: Tensor) -> Tensor:
    """``out``, with `v_0` in one row of every head; in place."""
    out[:, :, row] = v[:, :, 0].repeat_interleave(out.shape[1] // v.shape[1], dim=1)
    return out


def masked_rows(out: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """``out`` with `v_j` in every row to which the additive mask leaves one key `j`. It reads the mask's entries."""
    visible = bias > -torch.inf
    alone = visible.sum(dim=-1, keepdim=True) == 1
    if not alone.any():
        return out
    where = visible.to(torch.uint8).argmax(dim=-1, keepdim=True).expand(out.shape)
    values = v.repeat_interleave(out.shape[1] // v.shape[1], dim=1).gather(2, where)
    return torch.where(alone, values, out)
