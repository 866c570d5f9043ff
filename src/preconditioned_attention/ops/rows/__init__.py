r"""What row equilibration adds to a flash-type kernel: one pass over the rows forward, and one backward.

A flash kernel computes `A_i = sum_j exp(s_ij - L_i) v_j` with `L_i = logsumexp_j s_ij`. With `r_i = ||A_i||` and
`lambda_i = L_i + log r_i` the preconditioned row is the same sum with another log-normalizer,
`Y_i = sum_j exp(s_ij - lambda_i) v_j`. The kernel's backward pass takes `(dout, q, k, v, out, lse)` and uses
`delta = rowsum(dout * out)`; unchanged, it differentiates `Y` if its arguments are

    gradient="full":   dout = G = dY - Y <dY, Y>,   out = 0,         lse = lambda     (delta = <G, Y> = 0)
    gradient="stop":   dout = dY,                   out = A = r Y,   lse = lambda     (delta = r <dY, Y>)

`G` is orthogonal to `Y`, so `out = Y` would do in exact arithmetic. But `delta` is subtracted from `<G, v_j>`, and the
rounding of `<G, Y>` does not shrink with the values as that does: in bfloat16 and with values of length 0.8 the
gradients of q and k had an error a third larger than those of backend="composition", ten times at 0.08. Zeros are
exact.

Rows with `r <= eps` keep `Y = A`, `lambda = L`, and count as `r = 1`; for them `G` differs from `dY` by `eps^2`
relative, which is below rounding for every eps that :func:`.formula.eps_is_negligible` admits.

Low precision. The kernel forms `exp(s - lambda) = P / r` in the dtype of `q`, which float16 cannot hold for short
rows together with what it is multiplied by. With `r' = max(r, rho)` the pair `lambda = L + log r'` and
`dout = (r' / r) G` (or `(r' / r) dY`) gives the same products.

Layout. CPU and CUDA flash write `A` as (B, N, H, d) in memory and return it as (B, H, N, d), so that merging the heads
is a view. Every function of this package keeps that layout.

This file chooses between the Triton kernels (`operators`), PyTorch's fused CPU operators (`cpu`) and the formula
(`formula`). `autograd` equilibrates rows that were computed elsewhere.
"""

from __future__ import annotations

from torch import Tensor

from . import cpu, operators


def precondition_rows_(a: Tensor, lse: Tensor, eps: float) -> Tensor:
    """`(A, L) -> (Y, lambda)` in place; returns the norms `r`, 1 for zero rows.

    Args:
        a: what a kernel has just written, ``(B, H, N, d)``, in any layout; nothing else may refer to it.
        lse: ``(B, H, N)``, in at least float32; may be a view of something longer.
        eps: rows with a norm of at most this stay as they are.
    """
    if operators.launch_once(a):
        norms: Tensor = operators.precondition_rows_(a, lse, eps)
        return norms
    return cpu.precondition_rows_(a, lse, eps)


def cotangents(dy: Tensor, y: Tensor, norms: Tensor | None, *, full: bool) -> tuple[Tensor, Tensor | None]:
    """`dout` and `out` of the table above; (B, H, N, d) each, `out` None for zeros.

    ``norms`` may be None where they are not needed: ``full``, and a dtype other than float16.
    """
    if not operators.launch_once(y):
        return cpu.cotangents(dy, y, norms, full=full)
    *changed, out = operators.cotangents(dy, y, norms, full)
    return (changed[0] if changed else dy), out
