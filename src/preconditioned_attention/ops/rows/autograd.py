r"""`equilibrate`, the public function for rows that were computed elsewhere, with an explicit backward pass.

The formula of `equilibration`, differentiated by autograd, saves half a dozen tensors of the size of the rows. The
explicit backward pass, `(g - y <g, y>) / r` with `y = x / r` and `g = dL/dy`, saves `y`, which the next operation (the
output projection) saves too, and one number per row; with ``gradient="stop"`` that number alone. Compilers,
`torch.func` transforms, tracers and tensor subclasses get the formula.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function

from ..._symbolic import one_call
from ...config import GRADIENTS, Gradient, check_choice, check_eps
from ...equilibration import check_gain, check_rows, default_eps, equilibrate_by_formula
from ..tracing import hold_constant, is_recorded
from .cpu import derivative, unit_rows
from .formula import eps_is_negligible, squares_fit


class _Equilibrate(Function):
    """`x -> (y, r)`. Both are outputs, so that the backward pass can be differentiated with respect to `x`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float, full: bool) -> tuple[Tensor, Tensor]:
        y, norms = unit_rows(x, eps)
        ctx.set_materialize_grads(False)
        if not full:
            ctx.mark_non_differentiable(norms)
        ctx.save_for_backward(y if full else None, norms)
        ctx.save_for_forward(y if full else None, norms)
        return y, norms

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dnorms: Tensor | None) -> tuple[Tensor | None, None, None]:
        y, norms = ctx.saved_tensors
        dx = None if dy is None else derivative(dy, y, norms)
        if dnorms is not None:  # in a derivative of this pass
            along = dnorms * y
            dx = along if dx is None else dx + along
        return dx, None, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, *_: None) -> tuple[Tensor, Tensor | None]:
        """The derivative of a row is symmetric: forward it is what it is backward."""
        y, norms = ctx.saved_tensors
        return derivative(dx, y, norms), None if y is None else (dx * y).sum(dim=-1, keepdim=True).to(norms.dtype)


@one_call
def equilibrate(
    x: Tensor,
    *,
    gradient: Gradient = "full",
    eps: float | None = None,
    gain: Tensor | None = None,
) -> Tensor:
    r"""Scale every row of ``x`` (its last axis) to unit length: `y_i = x_i / ||x_i||_2`, and `y_i = x_i` for zero rows.

    Up to the factor `sqrt(d)` this is a parameter-free RMS norm of each row. The docstring of
    :mod:`preconditioned_attention.equilibration` holds the derivation of both gradients.

    Args:
        x: ``(..., d)``, float16, bfloat16, float32 or float64. For attention: ``(B, H, N, d)``, each head's output.
        gradient: ``"full"`` differentiates through the norm, ``"stop"`` treats it as a constant. Same output.
        eps: rows with a norm of at most this are returned unchanged. None: 2**-14 in float16, 1e-12 otherwise.
        gain: one factor per head, ``(H,)`` with ``H = x.shape[-3]``; multiplies every row, zero rows included.

    Returns:
        A tensor of the shape and dtype of ``x``. Norms are taken in at least float32 (float64 stays float64) and
        over the whole range of the dtype; the result is rounded once. NaN stays NaN, infinite entries become NaN. For
        the backward pass ``"full"`` saves the result and one number per row, ``"stop"`` the number.

    Raises:
        TypeError: complex, integer or otherwise unsupported input.
        ValueError: an unknown ``gradient``, a negative ``eps``, a gain that does not fit.

    Source: arXiv 2603.27153; van der Sluis 1969.
    """
    check_rows(x, "x")
    check_choice("gradient", gradient, GRADIENTS)
    check_eps(eps)
    check_gain(gain, x.shape[-3] if x.dim() >= 3 else None)
    least = default_eps(x.dtype) if eps is None else eps
    if not _supports(x, least):
        return equilibrate_by_formula(x, gradient=gradient, eps=eps, gain=gain, stop=hold_constant)
    y: Tensor = _Equilibrate.apply(x, least, gradient == "full")[0]
    if gain is None:
        return y
    return (y * gain.to(torch.promote_types(y.dtype, torch.float32)).view(-1, 1, 1)).to(y.dtype)


def _supports(x: Tensor, eps: float) -> bool:
    """Whether the explicit derivative applies to ``x``; tracers and transforms get the formula."""
    if torch.compiler.is_compiling() or is_recorded() or torch._C._are_functorch_transforms_active():
        return False
    return (
        type(x) in (Tensor, torch.nn.Parameter)
        and x.numel() > 0
        and squares_fit(x.dtype, eps)
        and eps_is_negligible(eps, x.dtype)
    )
