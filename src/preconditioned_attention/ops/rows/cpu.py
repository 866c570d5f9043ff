"""The row work of `rows` by PyTorch's fused CPU operators, in eager mode; where they do not apply, by the formula.

Where a function could be split further it is not: in eager mode each call costs as much as an operator on short rows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import formula
from .formula import FLOAT16_FLOOR, least_norm, norm_dtype

_LEAST_NORM = {dtype: least_norm(dtype) for dtype in (torch.float32, torch.float64)}


def supports(x: Tensor) -> bool:
    """Whether the fused CPU operators work on ``x``: a compiler fuses the formula, and fake tensors have no values."""
    return not torch.compiler.is_compiling() and type(x) is Tensor and x.is_cpu and x.numel() > 0


def precondition_rows_(a: Tensor, lse: Tensor, eps: float) -> Tensor:
    """As :func:`.rows.precondition_rows_`."""
    if torch.compiler.is_compiling() or type(a) is not Tensor or not a.is_cpu or a.numel() == 0:  # not `supports`
        return formula.precondition_rows_(a, lse, eps)
    # In the order of memory, (B, N, H, d) as flash writes it: PyTorch's loops are three times slower on the view.
    rows = a.transpose(1, 2)
    wide = torch.promote_types(a.dtype, torch.float32)
    norms = torch.linalg.vector_norm(rows, dim=-1, dtype=wide)
    low, high = torch.aminmax(norms)
    least, greatest, reliable = low.item(), high.item(), _LEAST_NORM[wide]
    if not greatest < math.inf or (eps < reliable and not least > reliable):  # `not <`: also when one is NaN
        return formula.precondition_rows_(a, lse, eps)
    if least <= eps:
        norms = torch.where(norms <= eps, 1.0, norms)
    rows.div_(norms.unsqueeze(-1))
    norms = norms.transpose(1, 2)
    log_norms = norms.log()
    if a.dtype == torch.float16:
        log_norms = log_norms.clamp_min(math.log(FLOAT16_FLOOR))
    lse += log_norms.to(lse.dtype)
    return norms


def cotangents(dy: Tensor, y: Tensor, norms: Tensor | None, *, full: bool) -> tuple[Tensor, Tensor | None]:
    """As :func:`.rows.cotangents`."""
    dout = tangent(dy, y) if full else dy
    if full and y.dtype != torch.float16:
        return dout, None
    return formula.with_norms(dout, y, norms, full=full)


def tangent(dy: Tensor, y: Tensor) -> Tensor:
    """`G = dY - Y <dY, Y>`, ``(..., d)``: by PyTorch's fused weight normalization, whose backward pass with unit norms
    is this.
    """
    if torch.compiler.is_compiling() or type(y) is not Tensor or not y.is_cpu or y.numel() == 0:  # not `supports`
        return formula.tangent(dy, y).to(y.dtype)
    order, back = _memory_order(y)
    rows, width = y.permute(order), y.shape[-1]
    # Contiguous, because the operator reads them as if they were: the gradient of `sum()` is one number, expanded.
    flat_dy, flat_y = dy.permute(order).contiguous().view(-1, width), rows.contiguous().view(-1, width)
    ones = torch.ones(len(flat_y), 1, dtype=torch.promote_types(y.dtype, torch.float32))
    out = torch.ops.aten._weight_norm_interface_backward(flat_dy, flat_y, ones.to(y.dtype), ones, 0)[0]
    return out.view(rows.shape).permute(back)


def unit_rows(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`(y, r)` of rows ``(..., d)`` in any layout: `y` laid out as ``x``, `r` with ``(..., 1)``, 1 for zero rows.

    ``eps`` must be one that :func:`.formula.squares_fit` admits.
    """
    if supports(x):
        order, back = _memory_order(x)
        rows = x.permute(order)
        norms = torch.linalg.vector_norm(rows, dim=-1, keepdim=True, dtype=norm_dtype(x))
        low, high = torch.aminmax(norms)
        if high.item() < math.inf:
            norms = torch.where(norms <= eps, 1.0, norms) if low.item() <= eps else norms
            y = torch.div(rows, norms, out=torch.empty_like(rows))
            return y.permute(back), norms.permute(back)
    return formula.unit_rows(x, eps)


def derivative(dy: Tensor, y: Tensor | None, norms: Tensor) -> Tensor:
    """`(dY - Y <dY, Y>) / r`, or without ``y``, which is then a constant's, `dY / r`; ``norms`` is ``(..., 1)``.

    Differentiable where autograd is recording.
    """
    if y is None or torch.is_grad_enabled() or not supports(y):
        dx = dy.to(norm_dtype(dy)) if y is None else formula.tangent(dy, y)
        return (dx / norms).to(dy.dtype)
    return tangent(dy, y).div_(norms)


def _memory_order(x: Tensor) -> tuple[list[int], list[int]]:
    """The axes from the longest stride to the shortest, the last one where it is, and the inverse permutation.

    PyTorch's loops are fastest in this order.
    """
    last = x.dim() - 1
    order = [*sorted(range(last), key=x.stride().__getitem__, reverse=True), last]
    return order, sorted(range(last + 1), key=order.__getitem__)
