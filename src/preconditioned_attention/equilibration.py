r"""The mathematics of the preconditioner: row norms, the zero-row rule, the two gradients, the gain.

Row equilibration scales every row of a matrix `A` to unit length, `C A` with `C = diag(1 / ||A_i||_2)`. Among all
row scalings it comes within a factor `sqrt(N)` of the smallest condition number that any can reach (A. van der
Sluis, "Condition numbers and equilibration of matrices", Numerische Mathematik 14, 1969). Applied to every head's
output `A = Attn(Q, K, V)` it is preconditioned attention (H. Saratchandran, AISTATS 2026, arXiv 2603.27153).

Gradients. With `r = ||x||` and `y = x / r` the derivative of one row is

    dL/dx = (g - y <g, y>) / r          gradient="full":  the derivative of what is computed
    dL/dx = g / r                       gradient="stop":  C is a constant

where `g = dL/dy`. The forward pass is the same. That the paper's own training uses "stop" is reported by
a third party; this project could not check it.

Zero rows. Rows with `r <= eps` are left as they are (`C = 1`): a fully masked or dropped row stays zero, its gradient
passes through unchanged, and nothing is divided by zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .config import Gradient

EPS_FLOAT16 = 2.0**-14  # the smallest normal float16 number: below it a row carries no direction worth keeping
EPS = 1e-12
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def default_eps(dtype: torch.dtype) -> float:
    """The norm at or below which a row counts as zero: 2**-14 in float16, 1e-12 otherwise."""
    return EPS_FLOAT16 if dtype == torch.float16 else EPS


def check_rows(x: object, name: str) -> None:
    """Raise unless ``x`` is a real floating-point tensor with rows to take norms of."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor; got {type(x).__name__}")
    if x.dtype not in DTYPES:
        raise TypeError(
            f"{name} must be float16, bfloat16, float32 or float64; got {x.dtype}. "
            f"Convert it first, for example {name}.float()"
        )
    if x.dim() < 1:
        raise ValueError(f"{name} must have rows along its last axis; got shape {tuple(x.shape)}")


def check_gain(gain: object, heads: int | None) -> None:
    """Raise unless ``gain`` is None or a real tensor of shape ``(heads,)``; ``heads=None``: there is no head axis."""
    if gain is None:
        return
    if not isinstance(gain, Tensor) or not gain.is_floating_point():
        raise TypeError(f"gain must be a floating-point tensor of shape (num_heads,) or None; got {gain!r}")
    if heads is None:
        raise ValueError("gain needs a head axis: expected rows of shape (..., num_heads, tokens, head_dim)")
    if gain.shape != (heads,):
        raise ValueError(f"gain must have shape (num_heads,) = ({heads},); got {tuple(gain.shape)}")


def _range_scale(x: Tensor) -> Tensor:
    """A power of two per row that brings its largest entry to where squares neither overflow nor underflow.

    Exact, and 1 for every row of ordinary size. It needs no derivative: `x / ||x||` does not change with it.
    """
    wide = x.dtype == torch.float64
    large, shrink = (2.0**400, 2.0**-600) if wide else (2.0**50, 2.0**-100)
    small, grow = (2.0**-400, 2.0**700) if wide else (2.0**-50, 2.0**100)
    largest = x.detach().abs().amax(dim=-1, keepdim=True)  # vector_norm cannot be traced without a row
    one = largest.new_ones(())  # not of its shape, which PyTorch's older exporter to ONNX records as fixed
    return torch.where(largest > large, one * shrink, torch.where(largest < small, one * grow, one))


class RowScale(NamedTuple):
    """A batch of rows as numerator and divisor, without overflow or underflow: `y_i = scaled_i / divisor_i`."""

    scaled: Tensor  # x times the scale, in at least float32, (..., d)
    scale: Tensor  # a power of two per row, (..., 1)
    divisor: Tensor  # the norm of the scaled row, or the scale for zero rows, which so stay as they are, (..., 1)


def row_scale(x: Tensor, eps: float, stop: Callable[[Tensor], Tensor] | None = None) -> RowScale:
    """Numerator and divisor of the unit rows of ``x``; rows with a norm of at most ``eps`` stay as they are.

    ``stop`` takes the derivative from the norms.
    """
    rows = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = _range_scale(rows)
    scaled = rows * scale
    squared = scaled.square().sum(dim=-1, keepdim=True)
    zero = squared.detach().sqrt() <= eps * scale
    norm = squared.clamp_min(torch.finfo(rows.dtype).tiny).sqrt()  # at 0 the root has no derivative
    norm = norm if stop is None else stop(norm)
    return RowScale(scaled, scale, torch.where(zero, scale, norm))


def equilibrate_by_formula(
    x: Tensor,
    *,
    gradient: Gradient,
    eps: float | None,
    gain: Tensor | None,
    stop: Callable[[Tensor], Tensor] = Tensor.detach,
) -> Tensor:
    """:func:`preconditioned_attention.equilibrate` in plain operations, differentiated by autograd.

    The reference for the explicit derivative, and what compilers, tracers and transforms get. ``x`` and ``gain`` are
    those that :func:`check_rows` and :func:`check_gain` admit; ``stop`` holds a norm constant.
    """
    if x.shape[-1] == 0:
        return x.clone()
    parts = row_scale(x, default_eps(x.dtype) if eps is None else eps, stop if gradient == "stop" else None)
    y = parts.scaled / parts.divisor
    if gain is not None:
        y = y * gain.to(y.dtype).view(-1, 1, 1)
    return y.to(x.dtype)


def row_norms(x: Tensor) -> Tensor:
    """`r_i = ||x_i||_2` over the last axis, in at least float32, without overflow: ``(..., d) -> (...)``.

    Raises:
        TypeError: complex, integer or otherwise unsupported input.
    """
    check_rows(x, "x")
    rows = x.to(torch.promote_types(x.dtype, torch.float32))
    if x.shape[-1] == 0:
        return rows.sum(dim=-1)
    scale = _range_scale(rows)
    return torch.linalg.vector_norm(rows * scale, dim=-1) / scale.squeeze(-1)
