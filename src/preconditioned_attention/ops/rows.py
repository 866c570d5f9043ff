r"""The row work around a flash-type kernel: what row equilibration adds to it, and all that it adds.

A flash kernel computes `A_i = sum_j exp(s_ij - L_i) v_j` with `L_i = logsumexp_j s_ij`. With `r_i = ||A_i||` and
`lambda_i = L_i + log r_i` the preconditioned row is the same sum with another log-normaliser,
`Y_i = sum_j exp(s_ij - lambda_i) v_j`. The kernel's backward pass takes `(dout, q, k, v, out, lse)` and uses
`delta = rowsum(dout * out)`; unchanged, it differentiates `Y` if it is handed

    gradient="full":   dout = G = dY - Y <dY, Y>,   out = Y,         lse = lambda     (G is orthogonal to Y: delta = 0)
    gradient="stop":   dout = dY,                   out = A = r Y,   lse = lambda     (delta = r <dY, Y>)

Rows with `r <= eps` keep `Y = A`, `lambda = L`, and count as `r = 1`; for them `G` differs from `dY` by `eps^2`
relative, which is below rounding for every eps that :func:`eps_is_negligible` admits.

Low precision. The kernel forms `exp(s - lambda) = P / r` in the dtype of `q`, which float16 cannot hold for short
rows together with what it is multiplied by. With `r' = max(r, rho)` the pair `lambda = L + log r'` and
`dout = (r' / r) G` (or `(r' / r) dY`) gives the same products.

Layout. CPU and CUDA flash write `A` as (B, N, H, d) in memory and show it as (B, H, N, d), so that merging the heads is
a view. Everything here keeps that.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..equilibration import row_scale

FLOAT16_FLOOR = 2.0**-10


class Rows(NamedTuple):
    """What the forward pass makes of `A` and `L`; ``norms`` is 1 for zero rows."""

    y: Tensor  # (B, H, N, d)
    lse: Tensor  # lambda, (B, H, N)
    norms: Tensor  # r, (B, H, N)


def eps_is_negligible(eps: float, dtype: torch.dtype) -> bool:
    """Whether leaving `Y <dY, Y>` in the gradient of zero rows stays well below the rounding of ``dtype``."""
    return eps * eps <= torch.finfo(dtype).eps / 8


def precondition_rows(a: Tensor, lse: Tensor, eps: float) -> Rows:
    """`(A, L) -> (Y, lambda, r)`; ``a`` is (B, H, N, d), ``lse`` is (B, H, N), in at least float32."""
    if _one_pass_serves(a):
        rows = _precondition_in_one_pass(a, lse, eps)
        if rows is not None:
            return rows
    parts = row_scale(a.transpose(1, 2), eps)  # in the order in which the rows lie in memory, to keep that layout
    y = (parts.scaled / parts.divisor).to(a.dtype).transpose(1, 2)
    log_norms = parts.divisor.log() - parts.scale.log()  # 0 for zero rows
    norms = parts.divisor / parts.scale
    log_norms, norms = (x.squeeze(-1).transpose(1, 2).to(lse.dtype) for x in (log_norms, norms))
    return Rows(y, lse + log_norms, norms)


def tangent(dy: Tensor, y: Tensor) -> Tensor:
    """`G = dY - Y <dY, Y>`, the part of ``dy`` that moves the rows; (B, H, N, d) each."""
    if _one_pass_serves(y):
        flat_dy, flat_y = _flat(dy), _flat(y)
        ones = torch.ones(len(flat_y), 1, dtype=_norm_dtype(y))
        out = torch.ops.aten._weight_norm_interface_backward(flat_dy, flat_y, ones.to(y.dtype), ones, 0)[0]
        return _unflat(out, y)
    wide = torch.promote_types(y.dtype, torch.float32)
    along = (dy.to(wide) * y.to(wide)).sum(dim=-1, keepdim=True)
    return (dy.to(wide) - y.to(wide) * along).to(y.dtype)


def _one_pass_serves(x: Tensor) -> bool:
    """PyTorch's fused weight normalisation does a row's norm and its scaling in one pass over memory; CPU, eager.

    A compiler fuses the plain formula itself, and fake tensors have no values to look at.
    """
    return not torch.compiler.is_compiling() and type(x) is Tensor and x.device.type == "cpu" and x.numel() > 0


def _precondition_in_one_pass(a: Tensor, lse: Tensor, eps: float) -> Rows | None:
    """None if a row's norm is so large or so small that its square needs care."""
    flat = _flat(a)
    y, norms = torch._weight_norm_interface(flat, torch.ones(len(flat), 1, dtype=a.dtype), 0)
    low, high = (extreme.item() for extreme in torch.aminmax(norms))
    info = torch.finfo(norms.dtype)
    least = info.smallest_normal**0.5 * 2.0**20
    if not high < info.max or (eps < least and not low > least):  # `not <`: also when one is NaN
        return None
    if low <= eps:
        zero = norms <= eps
        y = torch.where(zero, flat, y)
        norms = torch.where(zero, 1.0, norms)
    norms = norms.view(a.shape[0], a.shape[2], a.shape[1])
    lse = norms.log().add_(lse.transpose(1, 2))
    return Rows(_unflat(y, a), lse.transpose(1, 2), norms.transpose(1, 2))


def _norm_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _flat(x: Tensor) -> Tensor:
    """(B, H, N, d) as the rows of one matrix, in the order in which they lie in memory."""
    return x.transpose(1, 2).reshape(-1, x.shape[-1])


def _unflat(rows: Tensor, like: Tensor) -> Tensor:
    return rows.view(like.transpose(1, 2).shape).transpose(1, 2)
