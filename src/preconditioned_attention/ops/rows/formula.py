"""The row work of `rows` as a formula, which compilers fuse; for compilers on the CPU, in a form that is one loop."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...equilibration import default_eps, row_scale

FLOAT16_FLOOR = 2.0**-10
EPS_SQUARED = {x: torch.finfo(x).eps / 8 for x in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}
"""The largest `eps^2` that is well below the rounding of a dtype."""


def eps_is_negligible(eps: float, dtype: torch.dtype) -> bool:
    """Whether leaving `Y <dY, Y>` in the gradient of zero rows stays well below the rounding of ``dtype``."""
    return eps == default_eps(dtype) or eps * eps <= EPS_SQUARED[dtype]


def squares_fit(dtype: torch.dtype, eps: float) -> bool:
    """Whether the squares of every row that is longer than ``eps`` are as exact as their sum."""
    return eps >= least_norm(torch.promote_types(dtype, torch.float32))


def least_norm(dtype: torch.dtype) -> float:
    """From this norm on the squares of a row are as exact in ``dtype``, float32 or float64, as their sum."""
    return torch.finfo(dtype).smallest_normal ** 0.5 * 2.0**20


def norm_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which norms of rows of ``x`` are taken."""
    return torch.promote_types(x.dtype, torch.float32)


def precondition_rows_(a: Tensor, lse: Tensor, eps: float) -> Tensor:
    """As :func:`.rows.precondition_rows_`."""
    if _one_loop_supports(a, eps):
        return _in_one_loop_(a, lse, eps)
    norms, log_norms = _unit_rows_(a, eps)
    if a.dtype == torch.float16:
        log_norms = log_norms.clamp_min(math.log(FLOAT16_FLOOR))
    lse += log_norms.to(lse.dtype)
    return norms


def cotangents(dy: Tensor, y: Tensor, norms: Tensor | None, *, full: bool) -> tuple[Tensor, Tensor | None]:
    """As :func:`.rows.cotangents`."""
    return with_norms(tangent(dy, y).to(y.dtype) if full else dy, y, norms, full=full)


def with_norms(dout: Tensor, y: Tensor, norms: Tensor | None, *, full: bool) -> tuple[Tensor, Tensor | None]:
    """`dout` and `out` of the table in `rows`, of `G` or `dY`: what the norms add to it."""
    out = None if full else (y * _per_row(norms)).to(y.dtype)
    if y.dtype == torch.float16:
        dout = (dout * (_per_row(norms).clamp_min(FLOAT16_FLOOR) / _per_row(norms))).to(dout.dtype)
    return dout, out


def tangent(dy: Tensor, y: Tensor) -> Tensor:
    """`G = dY - Y <dY, Y>`, the part of ``dy`` that is orthogonal to the rows; ``(..., d)``, in at least float32."""
    wide = norm_dtype(y)
    along = (dy.to(wide) * y.to(wide)).sum(dim=-1, keepdim=True)
    return dy.to(wide) - y.to(wide) * along


def unit_rows(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`(y, r)` of rows ``(..., d)``: `r` is ``(..., 1)``, 1 for zero rows."""
    parts = row_scale(x, eps)
    return (parts.scaled / parts.divisor).to(x.dtype), parts.divisor / parts.scale


def overflowed_rows_(a: Tensor, lse: Tensor, norms: Tensor, eps: float) -> None:
    """`(A, L, r) -> (Y, lambda, r)` in place, for the rows whose ``norms`` are infinite."""
    if norms.numel() == 0 or norms.amax().item() < math.inf:
        return
    found = norms == math.inf
    rows = a[found].view(1, 1, -1, a.shape[-1])
    found_norms, log_norms = _unit_rows_(rows, eps)
    a[found], norms[found] = rows.view(-1, a.shape[-1]), found_norms.flatten()
    lse[found] += log_norms.flatten().to(lse.dtype)


def _one_loop_supports(x: Tensor, eps: float) -> bool:
    """Whether `_in_one_loop_` is for ``x``. Exported programs get the formula: they need no operator of ours then."""
    compiling = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
    return compiling and x.device.type == "cpu" and eps >= least_norm(norm_dtype(x))


def _in_one_loop_(a: Tensor, lse: Tensor, eps: float) -> Tensor:
    """What a compiler for CPUs fuses into one loop, in the order of memory.

    The formula looks for the largest entry of a row before it squares any: half of the time of short rows. Here rows
    whose squares overflow are left as they are for :func:`overflowed_rows_`.
    """
    rows = a.transpose(1, 2).to(norm_dtype(a))
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


def _unit_rows_(a: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Unit rows in place; the norms and their logarithms, which are finite even where a norm is not."""
    parts = row_scale(a, eps)
    a.copy_(parts.scaled / parts.divisor)
    norms, log_norms = parts.divisor / parts.scale, parts.divisor.log() - parts.scale.log()
    return norms.squeeze(-1), log_norms.squeeze(-1)


def _per_row(norms: Tensor | None) -> Tensor:
    assert norms is not None
    return norms.unsqueeze(-1)
