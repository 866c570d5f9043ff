"""One autograd function for every flash-type kernel: the kernel is an argument, the identity of `rows` is the rest."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import Function
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from . import one_key, second_order
from .call import Call
from .rows import cotangents, eps_is_negligible, precondition_rows_


class Options(NamedTuple):
    """What a kernel is told beside its tensors, in both directions."""

    is_causal: bool
    scale: float | None
    dropout_p: float
    full: bool  # gradient="full"


class Inputs(NamedTuple):
    """What a kernel attends with; ``bias`` is an additive mask."""

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None


class Saved(NamedTuple):
    """What a kernel's backward pass is handed beside `dout` and the inputs; see the table in `rows`."""

    out: Tensor | None  # None: zeros
    lse: Tensor  # lambda, in the shape in which the kernel gave L
    state: tuple[Tensor | None, ...]  # what else the kernel gave: the state of its random numbers
    wanted: tuple[bool, ...]  # which of q, k, v and bias need a gradient


def written_out(out: Tensor | None, dout: Tensor) -> Tensor:
    """`out`, for a kernel that reads all of it."""
    return torch.zeros_like(dout) if out is None else out


# Inputs and options -> (A, L, *state). L is (B, H, N), or has an axis of size 1 more, or is padded at its end.
KernelForward = Callable[[Inputs, Options], tuple[Any, ...]]
# dout, inputs, what was saved, options -> the gradients of q, k, v and, where the kernel has one, of the bias.
KernelBackward = Callable[[Tensor, Inputs, Saved, Options], tuple[Tensor | None, ...]]


def renormalised(kernel_forward: KernelForward, kernel_backward: KernelBackward) -> Callable[[Call], Tensor]:
    """`call -> C Attn(q, k, v)` by the two halves of a flash-type kernel; `second_order` has the further derivatives.

    What is saved for the backward pass is what plain attention with the same kernel saves, and one number per row
    more where ``gradient="stop"`` or float16 needs the norms.
    """

    def by_the_kernel(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, y, lse, norms, *state = ctx.saved_tensors
        dout, out = cotangents(dy, y, norms, full=ctx.options.full)
        if ctx.options.is_causal and ctx.options.dropout_p == 0 and v.dtype in one_key.LOW_PRECISION:
            out = one_key.first_row(out, dout, v)
        saved = Saved(out, lse, tuple(state), ctx.needs_input_grad[:4])
        grads = kernel_backward(dout, Inputs(q, k, v, bias), saved, ctx.options)
        if one_key.every_row(ctx.options.is_causal, q.shape[2], k.shape[2]):
            return tuple(g if g is None or i == 2 else torch.zeros_like(g) for i, g in enumerate(grads))
        return grads

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
        ) -> Tensor:
            a, lse, *state = kernel_forward(Inputs(q, k, v, bias), options)
            norms = precondition_rows_(a, _of_rows(lse, q.shape[2]), eps)
            kept = None if options.full and q.dtype != torch.float16 else norms
            ctx.save_for_backward(q, k, v, bias, a, lse, kept, *state)
            ctx.options, ctx.eps = options, eps
            return as_output(a)

        @staticmethod
        def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
            if second_order.asked_for():
                kernel, definition = partial(by_the_kernel, ctx, dy), partial(_definition, ctx.options, ctx.eps)
                grads = second_order.gradients(kernel, definition, ctx.saved_tensors[:4], dy, ctx.options.dropout_p)
            else:
                grads = by_the_kernel(ctx, dy)
            return *grads, *(None,) * (6 - len(grads))

    def attend(call: Call) -> Tensor:
        q, k, v = call.q, call.k, call.v
        # One tensor in two places would stop torch.compile at the Function: a view of it is another tensor.
        k = k.view_as(k) if k is q else k
        v = v.view_as(v) if v is call.k or v is q else v
        options = Options(call.is_causal, call.scale, call.dropout_p, call.gradient == "full")
        out: Tensor = Renormalised.apply(q, k, v, call.attn_mask, options, call.eps)
        if call.gain is None:
            return out
        return (out * call.gain.to(torch.promote_types(out.dtype, torch.float32)).view(-1, 1, 1)).to(out.dtype)

    return attend


def call_again(options: Options, eps: float, inputs: Inputs) -> Call:
    """The call that a kernel served, gain and dropout aside."""
    q, k, v, bias = inputs
    return Call(
        q=q,
        k=k,
        v=v,
        attn_mask=bias,
        dropout_p=0.0,
        is_causal=options.is_causal,
        scale=options.scale,
        enable_gqa=True,
        gradient="full" if options.full else "stop",
        gain=None,
        eps=eps,
    )


def _definition(options: Options, eps: float, *inputs: Any) -> Tensor:
    """What a kernel computes, in operations that have every derivative."""
    return second_order.attend(call_again(options, eps, Inputs(*inputs)))


def as_output(a: Tensor) -> Tensor:
    """Traced by torch 2.11, an output that was changed in place loses its gradient; a view of it does not."""
    return a.view_as(a) if torch.compiler.is_compiling() else a


def _of_rows(lse: Tensor, queries: int) -> Tensor:
    """(B, H, N): cuDNN has an axis more, and memory-efficient attention pads the last one."""
    if lse.dim() == 4:
        lse = lse.squeeze(-1)
    return lse if lse.shape[2] == queries else lse[..., :queries]


def common_refusal(call: Call, device: str) -> str | None:
    """Why no re-normalised kernel on ``device`` can serve the call, or None."""
    q, k, v = call.q, call.k, call.v
    if not (q.device.type == device and k.device.type == device and v.device.type == device):
        return f"q, k and v must be on {device}; got {q.device}, {k.device} and {v.device}"
    if torch._C._are_functorch_transforms_active():
        return "torch.func transforms are not served"
    if any(type(x) is not Tensor and is_traceable_wrapper_subclass(x) for x in (q, k, v)):
        return "tensor subclasses are not served"
    if q.is_nested or k.is_nested or v.is_nested:
        return "nested tensors are not served"
    if not eps_is_negligible(call.eps, q.dtype):
        return f"eps={call.eps} is too large for {q.dtype}: the gradient of zero rows would show it"
    return None


def additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A boolean mask as what is added to the scores; any other as it is."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, -torch.inf)
