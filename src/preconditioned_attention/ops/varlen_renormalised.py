"""One autograd function for every flash-type kernel over packed sequences: `renormalised`, for tensors (T, H, d)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import Function

from . import second_order
from .renormalised import Inputs, Options, as_output, call_again
from .rows import cotangents, precondition_rows_
from .varlen_call import Packed, as_dense, as_packed, one_by_one


class PackedInputs(NamedTuple):
    """What a kernel attends with: q (T_q, H, d), k and v (T_k, H_kv, d), and where the sequences begin."""

    q: Tensor
    k: Tensor
    v: Tensor
    cu_seq_q: Tensor
    cu_seq_k: Tensor


class PackedOptions(NamedTuple):
    """What a kernel is told beside its tensors, in both directions."""

    max_q: int
    max_k: int
    shared: Options


class PackedSaved(NamedTuple):
    """What a kernel's backward pass is handed beside `dout` and the inputs; see the table in `rows`."""

    out: Tensor | None  # None: zeros
    lse: Tensor
    state: tuple[Tensor, ...]


# Inputs and options -> (A, L, *state); A is (T_q, H, d), L is (H, T_q).
PackedForward = Callable[[PackedInputs, PackedOptions], tuple[Tensor, ...]]
# dout, inputs, what was saved, options -> the gradients of q, k and v.
PackedBackward = Callable[[Tensor, PackedInputs, PackedSaved, PackedOptions], tuple[Tensor, Tensor, Tensor]]


def renormalised_packed(kernel_forward: PackedForward, kernel_backward: PackedBackward) -> Callable[[Packed], Tensor]:
    """`packed -> C Attn(q, k, v)` by the two halves of a kernel for packed sequences, once and, slower, again.

    What is saved is what plain attention with the same kernel saves, and one number per row more where
    ``gradient="stop"`` or float16 needs the norms.
    """

    def by_the_kernel(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        *tensors, y, lse, norms = ctx.saved_tensors[:8]
        dout, out = cotangents(as_dense(dy), as_dense(y), norms, full=ctx.options.shared.full)
        saved = PackedSaved(None if out is None else as_packed(out), lse, ctx.saved_tensors[8:])
        return kernel_backward(as_packed(dout), PackedInputs(*tensors), saved, ctx.options)

    class RenormalisedPacked(Function):
        @staticmethod
        def forward(
            ctx: Any,
            q: Tensor,
            k: Tensor,
            v: Tensor,
            cu_seq_q: Tensor,
            cu_seq_k: Tensor,
            options: PackedOptions,
            eps: float,
        ) -> Tensor:
            inputs = PackedInputs(q, k, v, cu_seq_q, cu_seq_k)
            a, lse, *state = kernel_forward(inputs, options)
            norms = precondition_rows_(as_dense(a), lse.unsqueeze(0), eps)
            kept = None if options.shared.full and q.dtype != torch.float16 else norms
            ctx.save_for_backward(*inputs, a, lse, kept, *state)
            ctx.options, ctx.eps = options, eps
            return as_output(a)

        @staticmethod
        def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
            grads: tuple[Tensor | None, ...]
            if second_order.asked_for():
                kernel, definition = partial(by_the_kernel, ctx, dy), partial(_definition, ctx.options, ctx.eps)
                inputs, dropout_p = ctx.saved_tensors[:5], ctx.options.shared.dropout_p
                grads = second_order.gradients(kernel, definition, inputs, dy, dropout_p)[:3]
            else:
                grads = by_the_kernel(ctx, dy)
            return *grads, None, None, None, None

    def attend(packed: Packed) -> Tensor:
        call = packed.call
        q, k, v = call.q, call.k, call.v
        # One tensor in two places would stop torch.compile at the Function: a view of it is another tensor.
        k = k.view_as(k) if k is q else k
        v = v.view_as(v) if v is call.k or v is q else v
        shared = Options(call.is_causal, call.scale, call.dropout_p, call.gradient == "full")
        options = PackedOptions(packed.max_q, packed.max_k, shared)
        at_q, at_k = packed.cu_seq_q, packed.cu_seq_k
        at_k = at_k.view_as(at_k) if at_k is at_q else at_k
        out: Tensor = RenormalisedPacked.apply(q, k, v, at_q, at_k, options, call.eps)
        if call.gain is None:
            return out
        return (out * call.gain.to(torch.promote_types(out.dtype, torch.float32)).view(-1, 1)).to(out.dtype)

    return attend


def _definition(options: PackedOptions, eps: float, *inputs: Tensor) -> Tensor:
    """What a kernel computes, in operations that have every derivative."""
    q, k, v, cu_seq_q, cu_seq_k = inputs
    max_q, max_k, shared = options
    call = call_again(shared, eps, Inputs(q, k, v, None))
    packed = Packed(call=call, cu_seq_q=cu_seq_q, cu_seq_k=cu_seq_k, max_q=max_q, max_k=max_k)
    return one_by_one(packed, second_order.attend)
