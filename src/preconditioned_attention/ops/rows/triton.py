"""The row work of `rows` on GPUs: one Triton kernel for the way forward, one for the way back.

Importing this file imports Triton; `operators` imports it at the first call that can use it.

A program takes some tokens of one head of one sample, (N, D) = (tokens of the block, head dimension rounded up to a
power of two). Offsets are 64-bit numbers: attention outputs of more than 2**31 entries exist. What is written in
capitals is compiled in: as a constant, unlike as an argument, ``eps`` keeps its 64 bits.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .formula import FLOAT16_FLOOR

_BLOCK_ENTRIES = 2048  # per program: 16 for each thread of four warps


def precondition_rows_(a: Tensor, lse: Tensor, eps: float) -> Tensor:
    """As :func:`.rows.precondition_rows_`; every tensor may have any strides, what lies between is not touched."""
    batch, heads, tokens, width = a.shape
    norms = torch.empty(a.shape[:3], dtype=torch.promote_types(a.dtype, torch.float32), device=a.device)
    floor = FLOAT16_FLOOR if a.dtype == torch.float16 else None
    if norms.numel() > 0:
        grid, blocks = _launch(batch, heads, tokens, width)
        with torch.cuda.device_of(a):
            _precondition_rows_kernel[grid](
                a, lse, norms, *a.stride(), *lse.stride(), heads, tokens, EPS=eps, FLOOR=floor, **blocks
            )
    torch.autograd.graph.increment_version((a, lse))
    return norms


def cotangents(dy: Tensor, y: Tensor, norms: Tensor | None, *, full: bool) -> list[Tensor]:
    """`dout`, unless it is ``dy``, and `out`; see :func:`.rows.cotangents`."""
    batch, heads, tokens, width = y.shape
    floor = FLOAT16_FLOOR if y.dtype == torch.float16 else None
    assert norms is not None or (full and floor is None)
    dout = torch.empty_like(y) if full or floor is not None else None
    out = torch.empty_like(y)
    if y.numel() > 0:
        grid, blocks = _launch(batch, heads, tokens, width)
        norms = None if norms is None else norms.contiguous()
        with torch.cuda.device_of(y):
            _cotangents_kernel[grid](
                *(dy, y, norms, dout, out, *dy.stride(), *y.stride(), *out.stride(), heads, tokens),
                FULL=full,
                FLOOR=floor,
                **blocks,
            )
    return [out] if dout is None else [dout, out]


@functools.cache
def available(device: torch.device) -> bool:
    """Whether Triton compiles for this GPU: NVIDIA's from compute capability 7.0 on, and AMD's."""
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (7, 0)


def _launch(batch: int, heads: int, tokens: int, width: int) -> tuple[tuple[int], dict[str, Any]]:
    """The grid, one-dimensional because only its first axis is long enough, and the sizes of a block."""
    padded = triton.next_power_of_2(width)
    rows = min(triton.next_power_of_2(tokens), max(1, _BLOCK_ENTRIES // padded))
    return (batch * heads * triton.cdiv(tokens, rows),), {"WIDTH": width, "BLOCK_N": rows, "BLOCK_D": padded}


@triton.jit
def _place(heads, tokens, BLOCK_N: tl.constexpr):  # type: ignore[no-untyped-def]
    """Sample, head and tokens of this program, 64 bits each."""
    blocks = tl.cdiv(tokens, BLOCK_N)
    sequence = tl.program_id(0) // blocks
    n = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    return (sequence // heads).to(tl.int64), (sequence % heads).to(tl.int64), n


@triton.jit
def _widened(x):  # type: ignore[no-untyped-def]
    """At least float32."""
    return x if x.dtype == tl.float64 else x.to(tl.float32)


@triton.jit
def _root(x):  # type: ignore[no-untyped-def]
    """The square root, rounded correctly: Triton's own of float32 is not."""
    return tl.sqrt(x) if x.dtype == tl.float64 else tl.sqrt_rn(x)


@triton.jit
def _divided(x, y):  # type: ignore[no-untyped-def]
    """`x / y`, rounded correctly: Triton's own division of float32 is not."""
    return x / y if x.dtype == tl.float64 else tl.div_rn(x, y)


@triton.jit
def _range_scale(largest):  # type: ignore[no-untyped-def]
    """`equilibration._range_scale`: a power of two per row that keeps squares from overflow and underflow."""
    one = tl.full(largest.shape, 1.0, largest.dtype)
    if largest.dtype == tl.float64:
        return tl.where(largest > 2.0**400, one * 2.0**-600, tl.where(largest < 2.0**-400, one * 2.0**700, one))
    return tl.where(largest > 2.0**50, one * 2.0**-100, tl.where(largest < 2.0**-50, one * 2.0**100, one))


@triton.jit(do_not_specialize=["heads", "tokens"])
def _precondition_rows_kernel(  # type: ignore[no-untyped-def]
    a,
    lse,
    norms,
    a_b,
    a_h,
    a_n,
    a_d,
    lse_b,
    lse_h,
    lse_n,
    heads,
    tokens,
    EPS: tl.constexpr,
    FLOOR: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """`(A, L) -> (Y, lambda)` in place and the norms, contiguous; the arithmetic of `equilibration.row_scale`."""
    b, h, n = _place(heads, tokens, BLOCK_N)
    d = tl.arange(0, BLOCK_D).to(tl.int64)
    is_row = n < tokens
    is_entry = is_row[:, None] & (d < WIDTH)[None, :]
    entries = a + b * a_b + h * a_h + n[:, None] * a_n + d[None, :] * a_d
    x = _widened(tl.load(entries, mask=is_entry, other=0.0))

    scale = _range_scale(tl.max(tl.abs(x), axis=1))
    scaled = x * scale[:, None]
    norm = _root(tl.sum(scaled * scaled, axis=1))  # NaN where the row holds one; max above may have passed it over
    is_zero = norm <= EPS * scale
    one = tl.full(norm.shape, 1.0, norm.dtype)
    norm = tl.where(is_zero, scale, norm)
    y = tl.where(is_zero[:, None], x, scaled * _divided(one, norm)[:, None])
    log_norm = tl.where(is_zero, 0.0, tl.log(norm) - tl.log(scale))
    if FLOOR is not None:
        log_floor = tl.log(tl.full(norm.shape, FLOOR, norm.dtype))
        log_norm = tl.where(log_norm < log_floor, log_floor, log_norm)  # unlike tl.maximum, keeps NaN

    tl.store(entries, y.to(a.dtype.element_ty), mask=is_entry)
    constants = lse + b * lse_b + h * lse_h + n * lse_n
    old = tl.load(constants, mask=is_row, other=0.0)
    tl.store(constants, old + log_norm.to(lse.dtype.element_ty), mask=is_row)
    tl.store(norms + (b * heads + h) * tokens + n, _divided(norm, scale), mask=is_row)


@triton.jit(do_not_specialize=["heads", "tokens"])
def _cotangents_kernel(  # type: ignore[no-untyped-def]
    dy,
    y,
    norms,
    dout,
    out,
    dy_b,
    dy_h,
    dy_n,
    dy_d,
    y_b,
    y_h,
    y_n,
    y_d,
    out_b,
    out_h,
    out_n,
    out_d,
    heads,
    tokens,
    FULL: tl.constexpr,
    FLOOR: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """`dout`, if there is a tensor for it, and `out` of the table in `rows`; both have the same strides."""
    b, h, n = _place(heads, tokens, BLOCK_N)
    d = tl.arange(0, BLOCK_D).to(tl.int64)
    is_row = n < tokens
    is_entry = is_row[:, None] & (d < WIDTH)[None, :]
    row = _widened(tl.load(y + b * y_b + h * y_h + n[:, None] * y_n + d[None, :] * y_d, mask=is_entry, other=0.0))
    results = b * out_b + h * out_h + n[:, None] * out_n + d[None, :] * out_d

    if norms is not None:
        norm = tl.load(norms + (b * heads + h) * tokens + n, mask=is_row, other=1.0)
    unnormalized = tl.zeros_like(row) if FULL else row * norm[:, None]
    tl.store(out + results, unnormalized.to(out.dtype.element_ty), mask=is_entry)
    if dout is not None:
        seen = dy + b * dy_b + h * dy_h + n[:, None] * dy_n + d[None, :] * dy_d
        cotangent = _widened(tl.load(seen, mask=is_entry, other=0.0))
        if FULL:
            cotangent -= row * tl.sum(cotangent * row, axis=1)[:, None]
        if FLOOR is not None:
            cotangent *= _divided(tl.where(norm < FLOOR, FLOOR, norm), norm)[:, None]
        tl.store(dout + results, cotangent.to(dout.dtype.element_ty), mask=is_entry)
