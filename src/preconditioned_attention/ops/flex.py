"""FlexAttention, with any score function and block mask, and then row equilibration.

Not the re-normalized form of `rows`: FlexAttention's backward pass takes `Y` and `lambda` only through a private
operator. That needs the traced graphs of `score_mod`, its captured tensors as arguments of their own and the block mask
as a tuple that is longer in newer releases. Called from an autograd function it fails in PyTorch 2.11 and in 2.14,
compiled or not, and on the CPU it has no kernel. There is little to gain: FlexAttention is meant to be compiled, and a
compiler makes the row work one kernel each way, which the re-normalized form has too. What is saved for the backward
pass is what plain FlexAttention saves, one number and three flags per row, and, where merging the heads is a view, the
rows themselves once more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from ..config import Gradient
from .context_parallel import refuse_context_parallel
from .rows.autograd import equilibrate

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask, FlexKernelOptions

ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def flex_then_normalize(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    score_mod: ScoreMod | None,
    block_mask: BlockMask | None,
    scale: float | None,
    enable_gqa: bool,
    *,
    kernel_options: FlexKernelOptions | None,
    gradient: Gradient,
    gain: Tensor | None,
    eps: float | None,
) -> Tensor:
    """`equilibrate(flex_attention(q, k, v, ...))`; ``eps=None``: that of the result's dtype, as under autocast."""
    # Not at the top: its import takes longer than that of this package.
    from torch.nn.attention.flex_attention import flex_attention

    refuse_context_parallel("preconditioned_flex_attention")
    rows = flex_attention(
        q,
        k,
        v,
        score_mod=score_mod,
        block_mask=block_mask,
        scale=scale,
        enable_gqa=enable_gqa,
        kernel_options=kernel_options,
    )
    return equilibrate(rows, gradient=gradient, eps=eps, gain=gain)
