"""One autograd function for every flash-type kernel, dense or packed, and the backends that call it.

See `rows` for the identity. A kernel is a pair of functions in `KERNELS`; it is named by a string because dynamo passes
tensors and constants alone to an autograd function.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import Function

from .. import rows
from ..inputs import AttentionInputs, PackedInputs
from ..packed import as_dense, as_packed, one_by_one
from ..rows import cpu as cpu_rows
from . import one_key, second_order


class Options(NamedTuple):
    """What a kernel takes beside its tensors, in both directions."""

    is_causal: bool
    scale: float | None
    dropout_p: float
    full: bool  # gradient="full"
    max_q: int = 0  # of packed sequences
    max_k: int = 0


class KernelInputs(NamedTuple):
    """The tensors of a kernel; ``bias`` is an additive mask, ``cu_seq_q`` and ``cu_seq_k`` are for packed sequences.

    (B, H, N, d), or packed (T, H, d).
    """

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None
    cu_seq_q: Tensor | None
    cu_seq_k: Tensor | None


class Saved(NamedTuple):
    """What a kernel's backward pass takes beside `dout` and the inputs; see the table in `rows`."""

    out: Tensor | None  # None: zeros
    lse: Tensor  # lambda, in the shape of the kernel's L
    state: tuple[Tensor | None, ...]  # what else the kernel returned: the state of its random numbers
    wanted: tuple[bool, ...]  # which of q, k, v and bias need a gradient


class Kernel(NamedTuple):
    """The two functions of a kernel.

    ``forward``, dense: `(q, k, v, dropout_p, is_causal, *, attn_mask, scale) -> (A, L, *state)`, as PyTorch's operator
    for the CPU; L is (B, H, N), or has an axis of size 1 more, or is padded at its end. Packed: `(inputs, options) ->
    (A, L, *state)`; A is (T_q, H, d), L is (H, T_q).

    ``backward``: `(dout, inputs, saved, options)` -> the gradients of q, k, v and, if the kernel has one, of the bias.
    """

    forward: Callable[..., tuple[Any, ...]]
    backward: Callable[[Tensor, KernelInputs, Saved, Options], tuple[Tensor | None, ...]]


KERNELS: dict[str, Kernel] = {}


def materialize(out: Tensor | None, like: Tensor) -> Tensor:
    """`out`, for a kernel that reads all of it."""
    return torch.zeros_like(like) if out is None else out


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean mask as what is added to the scores; any other as it is."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else mask


class FlashAttention(Function):
    """`C Attn(q, k, v)` by a flash-type kernel; `second_order` has the further derivatives.

    What is saved for the backward pass is what plain attention with the same kernel saves, and one number per row
    more where ``gradient="stop"`` or float16 needs the norms.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        cu_seq_q: Tensor | None,
        cu_seq_k: Tensor | None,
        kernel: str,
        options: Options,
        eps: float,
    ) -> Tensor:
        """`Y`; ``eps`` as in `rows`."""
        attend = KERNELS[kernel].forward
        if cu_seq_q is None:
            a, lse, *state = attend(
                q, k, v, options.dropout_p, options.is_causal, attn_mask=bias, scale=options.scale
            )  # fmt: skip
            dense = a
            row_lse = lse if lse.dim() == 3 and lse.shape[2] == q.shape[2] else _of_rows(lse, q.shape[2])
        else:
            a, lse, *state = attend(KernelInputs(q, k, v, bias, cu_seq_q, cu_seq_k), options)
            dense, row_lse = as_dense(a), lse.unsqueeze(0)
        precondition_rows_ = cpu_rows.precondition_rows_ if a.is_cpu else rows.precondition_rows_
        norms = precondition_rows_(dense, row_lse, eps)
        kept = None if options.full and q.dtype != torch.float16 else norms
        ctx.save_for_backward(q, k, v, bias, cu_seq_q, cu_seq_k, a, lse, kept, *state)
        ctx.kernel, ctx.options, ctx.eps = kernel, options, eps
        # Traced by torch 2.11, an output that was changed in place loses its gradient; a view of it does not.
        return a.view_as(a) if torch.compiler.is_compiling() else a

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of q, k, v and the bias."""
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
            kernel, definition = partial(_kernel_gradients, ctx, dy), partial(_definition, ctx.options, ctx.eps)
            inputs, dropout_p = ctx.saved_tensors[:6], ctx.options.dropout_p
            grads = second_order.gradients(kernel, definition, inputs, dy, dropout_p)
        else:
            grads = _kernel_gradients(ctx, dy)
        return *grads, *(None,) * (9 - len(grads))


def _kernel_gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    """The first derivative, of q, k, v and perhaps the bias."""
    q, k, v, bias, cu_seq_q, cu_seq_k, y, lse, norms, *state = ctx.saved_tensors
    options, is_packed = ctx.options, cu_seq_q is not None
    cotangents = cpu_rows.cotangents if y.is_cpu else rows.cotangents
    if is_packed:
        dout, out = cotangents(as_dense(dy), as_dense(y), norms, full=options.full)
        dout, out = as_packed(dout), None if out is None else as_packed(out)
    else:
        dout, out = cotangents(dy, y, norms, full=options.full)
        if options.is_causal and options.dropout_p == 0 and v.dtype in one_key.LOW_PRECISION:
            out = one_key.first_row(out, dout, v)
    saved = Saved(out, lse, tuple(state), ctx.needs_input_grad[:4])
    grads = KERNELS[ctx.kernel].backward(dout, KernelInputs(q, k, v, bias, cu_seq_q, cu_seq_k), saved, options)
    if is_packed or not (torch.compiler.is_compiling() or k.shape[2] == 1 or q.shape[2] == 1):
        return grads
    if one_key.every_row(options.is_causal, q.shape[2], k.shape[2]):
        return tuple(g if g is None or i == 2 else torch.zeros_like(g) for i, g in enumerate(grads))
    return grads


def _definition(options: Options, eps: float, *tensors: Any) -> Tensor:
    """What a kernel computes, without gain and dropout, in operations that have every derivative."""
    q, k, v, bias, cu_seq_q, cu_seq_k = tensors
    inputs = AttentionInputs(
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
    if cu_seq_q is None:
        return second_order.differentiable(inputs)
    longest = {"max_q": options.max_q, "max_k": options.max_k}
    return one_by_one(
        PackedInputs(inputs=inputs, cu_seq_q=cu_seq_q, cu_seq_k=cu_seq_k, **longest), second_order.differentiable
    )


def _of_rows(lse: Tensor, queries: int) -> Tensor:
    """(B, H, N): cuDNN has an axis more, and memory-efficient attention pads the last one."""
    if lse.dim() == 4:
        lse = lse.squeeze(-1)
    return lse if lse.shape[2] == queries else lse[..., :queries]


class FlashBackend(ABC):
    """The backend of a dense kernel."""

    kernel: ClassVar[str]
    compiled_kernel: ClassVar[str]

    @abstractmethod
    def unsupported_reason(self, inputs: AttentionInputs) -> str | None:
        """Why the kernel cannot compute with ``inputs``; None if it can."""

    def attend(self, inputs: AttentionInputs) -> Tensor:
        """`C Attn(q, k, v)`."""
        q, k, v, mask = inputs.q, inputs.k, inputs.v, inputs.attn_mask
        # One tensor in two places would stop torch.compile at the Function: a view of it is another tensor.
        k = k.view_as(k) if k is q else k
        v = v.view_as(v) if v is inputs.k or v is q else v
        if mask is not None and mask.dtype == torch.bool:
            mask = additive(mask, q.dtype)
        kernel = self.compiled_kernel if torch.compiler.is_compiling() else self.kernel
        options = Options(inputs.is_causal, inputs.scale, inputs.dropout_p, inputs.gradient == "full")
        out: Tensor = FlashAttention.apply(q, k, v, mask, None, None, kernel, options, inputs.eps)
        if inputs.gain is None:
            return out
        return (out * inputs.gain.to(torch.promote_types(out.dtype, torch.float32)).view(-1, 1, 1)).to(out.dtype)


class PackedFlashBackend(ABC):
    """The backend of a kernel for packed sequences."""

    kernel: ClassVar[str]

    @abstractmethod
    def unsupported_reason(self, packed: PackedInputs) -> str | None:
        """Why the kernel cannot compute with ``packed``; None if it can."""

    @abstractmethod
    def attend_plain(self, packed: PackedInputs) -> Tensor:
        """`Attn(q, k, v)` within each sequence, by an operator that has a derivative."""

    def attend(self, packed: PackedInputs) -> Tensor:
        """`C Attn(q, k, v)` within each sequence."""
        inputs = packed.inputs
        q, k, v = inputs.q, inputs.k, inputs.v
        k = k.view_as(k) if k is q else k  # as in `FlashBackend`
        v = v.view_as(v) if v is inputs.k or v is q else v
        at_q, at_k = packed.cu_seq_q, packed.cu_seq_k
        at_k = at_k.view_as(at_k) if at_k is at_q else at_k
        full = inputs.gradient == "full"
        options = Options(inputs.is_causal, inputs.scale, inputs.dropout_p, full, packed.max_q, packed.max_k)
        out: Tensor = FlashAttention.apply(q, k, v, None, at_q, at_k, self.kernel, options, inputs.eps)
        if inputs.gain is None:
            return out
        return (out * inputs.gain.to(torch.promote_types(out.dtype, torch.float32)).view(-1, 1)).to(out.dtype)
