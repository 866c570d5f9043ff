"""The row work of `rows` in PyTorch: the formula, which a compiler fuses, and the fused CPU operators of eager mode."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..equilibration import row_scale

FLOAT16_FLOOR = 2.0**-10


def precondition_rows_(a: Tensor, lse: Tensor, eps: float) -> Tensor:
    """As :func:`.rows.precondition_rows_`."""
    if _compiler_serves(a, eps):
        return _in_one_loop_(a, lse, eps)
    norms = _in_one_pass_(a, eps) if _one_pass_serves(a) else None
    norms, log_norms = _by_the_formula_(a, eps) if norms is None else (norms, norms.log())
    if a.dtype == torch.float16:
        log_norms = log_norms.clamp_min(math.log(FLOAT16_FLOOR))
    lse += log_norms.to(lse.dtype)
    return norms


def cotangents(dy: Tensor, y: Tensor, norms: Tensor | None, *, full: bool) -> tuple[Tensor, Tensor | None]:
    """As :func:`.rows.cotangents`."""
    dout = tangent(dy, y) if full else dy
    out = None if full else (y * _per_row(norms)).to(y.dtype)
    if y.dtype == torch.float16:
        dout = (dout * (_per_row(norms).clamp_min(FLOAT16_FLOOR) / _per_row(norms))).to(dout.dtype)
    return dout, out


def unit_rows(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`(y, r)` of rows ``(..., d)`` in any layout: `y` laid out as ``x``, `r` with ``(..., 1)``, 1 for zero rows.

    ``eps`` must be one that :func:`squares_fit` admits.
    """
    if _one_pass_serves(x):
        rows, back = _by_memory(x)
        norms = torch.linalg.vector_norm(rows, dim=-1, keepdim=True, dtype=_norm_dtype(x))
        low, high = (extreme.item() for extreme in torch.aminmax(norms))
        if high < math.inf:
            norms = torch.where(norms <= eps, 1.0, norms) if low <= eps else norms
            y = torch.div(rows, norms, out=torch.empty_like(rows))
            return y.permute(back), norms.permute(back)
    parts = row_scale(x, eps)
    return (parts.scaled / parts.divisor).to(x.dtype), parts.divisor / parts.scale


def derivative(dy: Tensor, y: Tensor | None, norms: Tensor) -> Tensor:
    """`(dY - Y <dY, Y>) / r`, or without ``y``, which is then a constant's, `dY / r`; ``norms`` is ``(..., 1)``.

    Differentiable where autograd is recording.
    """
    if y is None or torch.is_grad_enabled() or not _one_pass_serves(y):
        wide = _norm_dtype(dy)
        dx = dy.to(wide) if y is None else _tangent_by_the_formula(dy, y)
        return (dx / norms).to(dy.dtype)
    return _tangent_in_one_pass(dy, y).div_(norms)


def squares_fit(dtype: torch.dtype, eps: float) -> bool:
    """Whether the squares of every row that is longer than ``eps`` are as exact as their sum."""
    return eps >= _least_norm(torch.promote_types(dtype, torch.float32))


def row_of_zeros(y: Tensor) -> Tensor:
    """One row of zeros, expanded to the shape of ``y``: CPU kernels take it for all rows."""
    return y.new_zeros(y.shape[-1]).expand(y.shape)


def tangent(dy: Tensor, y: Tensor) -> Tensor:
    """`G = dY - Y <dY, Y>`, the part of ``dy`` that moves the rows; ``(..., d)`` each."""
    return _tangent_in_one_pass(dy, y) if _one_pass_serves(y) else _tangent_by_the_formula(dy, y).to(y.dtype)


def _tangent_in_one_pass(dy: Tensor, y: Tensor) -> Tensor:
    """By PyTorch's fused weight normalisation: with unit norms its backward pass is this."""
    rows, back = _by_memory(y)
    flat_dy, flat_y = _flat(dy.permute(_memory_order(y))), _flat(rows)
    ones = torch.ones(len(flat_y), 1, dtype=_norm_dtype(y))
    out = torch.ops.aten._weight_norm_interface_backward(flat_dy, flat_y, ones.to(y.dtype), ones, 0)[0]
    return out.view(rows.shape).permute(back)


def _tangent_by_the_formula(dy: Tensor, y: Tensor) -> Tensor:
    """In at least float32."""
    wide = _norm_dtype(y)
    along = (dy.to(wide) * y.to(wide)).sum(dim=-1, keepdim=True)
    return dy.to(wide) - y.to(wide) * along


def _one_pass_serves(x: Tensor) -> bool:
    """Whether PyTorch's fused CPU operators do the row work; a compiler fuses the plain formula itself.

    Fake tensors have no values to look at.
    """
    return not torch.compiler.is_compiling() and type(x) is Tensor and x.device.type == "cpu" and x.numel() > 0


def _in_one_pass_(a: Tensor, eps: float) -> Tensor | None:
    """None, and nothing done, if a row's norm is so large or so small that its square needs care."""
    # In the order of memory, (B, N, H, d) as flash writes it: PyTorch's loops are three times slower on the view.
    rows = a.transpose(1, 2)
    norms = torch.linalg.vector_norm(rows, dim=-1, dtype=_norm_dtype(a))
    low, high = (extreme.item() for extreme in torch.aminmax(norms))
    least = _least_norm(norms.dtype)
    if not high < math.inf or (eps < least and not low > least):  # `not <`: also when one is NaN
        return None
    if low <= eps:
        norms = torch.where(norms <= eps, 1.0, norms)
    rows.div_(norms.unsqueeze(-1))
    return norms.transpose(1, 2)


def _compiler_serves(x: Tensor, eps: float) -> bool:
    """Whether `_in_one_loop_` is for ``x``: what is exported shall hold no operator that it could do without."""
    compiling = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
    return compiling and x.device.type == "cpu" and eps >= _least_norm(_norm_dtype(x))


def _in_one_loop_(a: Tensor, lse: Tensor, eps: float) -> Tensor:
    """What a compiler for CPUs makes one pass of, in the order of memory.

    The formula looks for the largest entry of a row before it squares any: half of the time of short rows. Here rows
    whose squares overflow are left as they are, and :func:`overflowed_rows_` attends to them.
    """
    rows = a.transpose(1, 2).to(_norm_dtype(a))
    norms = rows.square().sum(dim=-1, keepdim=True).sqrt()
    norms = torch.where(norms <= eps, 1.0, norms)
    divisor = torch.where(norms == math.inf, 1.0, norms)
    a.copy_((rows / divisor).transpose(1, 2))
    log_norms = divisor.log()
    if a.dtype == torch.float16:  # squares of float16 fit into float32
        log_norms = log_norms.clamp_min(math.log(FLOAT16_FLOOR))
    lse += log_norms.squeeze(-1).transpose(1, 2)
    norms = norms.squeeze(-1).transpose(1, 2)
    if a.dtype != torch.float16:
        torch.ops.preconditioned_attention.overflowed_rows_.default(a, lse, norms, eps)
    return norms


def overflowed_rows_(a: Tensor, lse: Tensor, norms: Tensor, eps: float) -> None:
    """`(A, L, r) -> (Y, lambda, r)` in place, for the rows whose ``norms`` are infinite."""
    if norms.numel() == 0 or norms.amax().item() < math.inf:
        return
    found = norms == math.inf
    rows = a[found].view(1, 1, -1, a.shape[-1])
    found_norms, log_norms = _by_the_formula_(rows, eps)
    a[found], norms[found] = rows.view(-1, a.shape[-1]), found_norms.flatten()
    lse[found] += log_norms.flatten().to(lse.dtype)


def _least_norm(dtype: torch.dtype) -> float:
    """From here on the squares of a row are as exact in ``dtype`` as their sum."""
    return torch.finfo(dtype).smallest_normal ** 0.5 * 2.0**20


def _by_the_formula_(a: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norms and their logarithms, which are finite even where a norm is not."""
    parts = row_scale(a, eps)
    a.copy_(parts.scaled / parts.divisor)
    norms, log_norms = parts.divisor / parts.scale, parts.divisor.log() - parts.scale.log()
    return norms.squeeze(-1), log_norms.squeeze(-1)


def _per_row(norms: Tensor | None) -> Tensor:
    assert norms is not None
    return norms.unsqueeze(-1)


def _memory_order(x: Tensor) -> list[int]:
    """The axes from the longest stride to the shortest, the last one where it is: PyTorch's loops are fastest so."""
    strides = x.stride()
    return [*sorted(range(x.dim() - 1), key=lambda axis: -strides[axis]), x.dim() - 1]


def _by_memory(x: Tensor) -> tuple[Tensor, list[int]]:
    """``x`` with its axes in the order of memory, and the permutation that brings them back."""
    order = _memory_order(x)
    return x.permute(order), [order.index(axis) for axis in range(x.dim())]


def _norm_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _flat(x: Tensor) -> Tensor:
    """Rows, their axes in the order of memory, as the rows of one matrix.

    Contiguous, because the fused operator reads it as if it were: `sum().backward()` hands over one number, expanded.
    """
    return x.contiguous().view(-1, x.shape[-1])
