"""`flex_attention` and its preconditioner, in one call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ._symbolic import one_call
from .config import GRADIENTS, Gradient, check_choice, check_eps
from .equilibration import check_gain, check_rows
from .ops.arguments import check_flag, check_scale
from .ops.flex import ScoreMod, flex_then_normalize

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask, FlexKernelOptions


@one_call
def preconditioned_flex_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    score_mod: ScoreMod | None = None,
    block_mask: BlockMask | None = None,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    kernel_options: FlexKernelOptions | None = None,
    gradient: Gradient = "full",
    gain: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    r"""`C A` with `A = softmax(score_mod(scale q k^T) + mask) v` and `C = diag(1 / ||A_i||_2)`, per token and head.

    The first seven arguments and ``kernel_options`` mean what they mean in
    :func:`torch.nn.attention.flex_attention.flex_attention`, and the result has the shape and dtype that it would
    have. The other keyword-only ones are the method's. Like `flex_attention` it is meant to be compiled,
    ``torch.compile(preconditioned_flex_attention)``; uncompiled, PyTorch forms all scores in memory.

    What PyTorch supports is what is supported: on the CPU the forward pass only (inputs that require gradients are
    refused there), compiled not in float64. Forward and backward are FlexAttention's kernel and then the rows, which a
    compiler makes one kernel each way.

    Args:
        q: ``(B, H, L, d)``.
        k: ``(B, H, S, d)``; with ``enable_gqa`` its heads may be a divisor of ``H``.
        v: ``(B, H, S, d_v)``; heads as ``k``.
        score_mod: ``(score, batch, head, q_index, k_index) -> score``; None leaves the scores as they are.
        block_mask: what may be attended to, from :func:`torch.nn.attention.flex_attention.create_block_mask`.
        scale: of the scores; None is ``1 / sqrt(d)``.
        enable_gqa: let several query heads share a key and value head.
        kernel_options: for FlexAttention's kernels.
        gradient: ``"full"`` differentiates through `C`; ``"stop"`` holds it constant in the backward pass.
        gain: None, or one factor per query head, ``(H,)``: `C_ii = g_h / ||A_i||`.
        eps: rows with a norm of at most this stay as they are; fully masked rows stay zero. None: 2**-14 where the
            result is float16, 1e-12 otherwise.

    Returns:
        ``(B, H, L, d_v)``, every row of unit norm (times its gain) or, if it was zero, unchanged.

    Raises:
        TypeError, ValueError: an argument of the method's does not fit, or q, k or v is no floating-point tensor of
            four axes; the message names it.
        ValueError, RuntimeError, NotImplementedError: what `flex_attention` raises for a call that it does not support.

    Source: H. Saratchandran, "Preconditioned Attention: Enhancing Efficiency in Transformers", AISTATS 2026,
    arXiv 2603.27153.

    Example:
        >>> q = k = v = torch.randn(2, 4, 16, 32)
        >>> window = create_block_mask(lambda b, h, i, j: (i - j).abs() <= 3, None, None, 16, 16, device="cpu")
        >>> preconditioned_flex_attention(q, k, v, block_mask=window).norm(dim=-1).allclose(torch.ones(2, 4, 16))
        True
    """
    for name, x in (("q", q), ("k", k), ("v", v)):
        _check_input(x, name)
    check_rows(q, "q")  # k and v may be of a float8 dtype, the rows are of q's
    check_choice("gradient", gradient, GRADIENTS)
    check_eps(eps)
    check_gain(gain, q.shape[1])
    check_flag("enable_gqa", enable_gqa)
    return flex_then_normalize(
        q,
        k,
        v,
        score_mod,
        block_mask,
        check_scale(scale),
        enable_gqa,
        kernel_options=kernel_options,
        gradient=gradient,
        gain=gain,
        eps=eps,
    )


def _check_input(x: object, name: str) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        came = f"a {x.dtype} tensor" if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{name} must be a floating-point torch.Tensor; got {came}")
    if x.dim() != 4:
        raise ValueError(f"{name} must have shape (B, H, tokens, head_dim); got {tuple(x.shape)}")
