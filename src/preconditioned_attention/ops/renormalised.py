"""One autograd function for every flash-type kernel: the kernel is an argument, the identity of `rows` is the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from .call import Call
from .rows import cotangents, precondition_rows_


class Options(NamedTuple):
    """What a kernel is told beside its tensors."""

    is_causal: bool
    scale: float | None
    dropout_p: float


class KernelForward(Protocol):
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, options: Options) -> tuple[Tensor, ...]:
        """`(A, L, *state)`; ``L`` in whatever shape the kernel has for it, ``state`` what its backward pass wants."""


class KernelBackward(Protocol):
    def __call__(
        self,
        dout: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        out: Tensor,
        lse: Tensor,
        state: tuple[Tensor, ...],
        options: Options,
        wanted: tuple[bool, ...],
    ) -> tuple[Tensor | None, ...]:
        """The gradients of q, k, v and the bias; ``wanted`` says which are needed."""


def renormalised(kernel_forward: KernelForward, kernel_backward: KernelBackward) -> Callable[[Call], Tensor]:
    """`call -> C Attn(q, k, v)`, differentiable once, by the two halves of a flash-type kernel.

    What is saved for the backward pass is what plain attention with the same kernel saves, and one number per row
    more where ``gradient="stop"`` or float16 needs the norms.
    """

    class Renormalised(Function):
        @staticmethod
        def forward(
            ctx: Any,
            q: Tensor,
            k: Tensor,
            v: Tensor,
            bias: Tensor | None,
            options: Options,
            eps: float,
            full: bool,
        ) -> Tensor:
            a, lse, *state = kernel_forward(q, k, v, bias, options)
            norms = precondition_rows_(a, _of_rows(lse, q.shape[2]), eps)
            kept = None if full and q.dtype != torch.float16 else norms
            ctx.save_for_backward(q, k, v, bias, a, lse, kept, *state)
            ctx.options, ctx.full = options, full
            return a

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
            q, k, v, bias, y, lse, norms, *state = ctx.saved_tensors
            dout, out = cotangents(dy, y, norms, full=ctx.full)
            wanted = ctx.needs_input_grad[:4]
            grads = kernel_backward(dout, q, k, v, bias, out, lse, tuple(state), ctx.options, wanted)
            return *grads, *(None,) * (7 - len(grads))

    def attend(call: Call) -> Tensor:
        q, k, v = call.q, call.k, call.v
        # One tensor in two places would stop torch.compile at the Function: a view of it is another tensor.
        k = k.view_as(k) if k is q else k
        v = v.view_as(v) if v is call.k or v is q else v
        options = Options(call.is_causal, call.scale, call.dropout_p)
        out: Tensor = Renormalised.apply(q, k, v, call.attn_mask, options, call.eps, call.gradient == "full")
        if call.gain is None:
            return out
        return (out * call.gain.to(torch.promote_types(out.dtype, torch.float32)).view(-1, 1, 1)).to(out.dtype)

    return attend


def _of_rows(lse: Tensor, queries: int) -> Tensor:
    """(B, H, N): cuDNN has an axis more, and memory-efficient attention pads the last one."""
    if lse.dim() == 4:
        lse = lse.squeeze(-1)
    return lse if lse.shape[2] == queries else lse[..., :queries]


def additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A boolean mask as what is added to the scores; any other as it is."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, -torch.inf)
