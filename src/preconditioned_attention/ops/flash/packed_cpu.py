"""Flash attention over packed sequences on the CPU: PyTorch's dense kernel once per sequence, the row work once.

The loop over the sequences reads their lengths, which a compiler cannot trace: forward and backward are operators of
PyTorch's dispatcher, `torch.ops.preconditioned_attention`. The derivative of the forward operator is that of plain
attention; exported programs, which record it and then the scaling of the rows, are trained by it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..inputs import PackedInputs
from ..packed import as_dense, as_one_sequence, as_packed, boundaries
from .autograd import KERNELS, Kernel, KernelInputs, Options, PackedFlashBackend, Saved
from .one_key import LOW_PRECISION, with_first_value
from .unsupported import unsupported_by_cpu_flash

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default

_PACKED = "Tensor q, Tensor k, Tensor v, Tensor cu_seq_q, Tensor cu_seq_k"
_OPTIONS = "SymInt max_q, SymInt max_k, bool is_causal, float? scale"
_LIBRARY = torch.library.Library("preconditioned_attention", "FRAGMENT")
_LIBRARY.define(f"varlen_flash({_PACKED}, {_OPTIONS}) -> (Tensor, Tensor)")
_LIBRARY.define(
    f"varlen_flash_backward(Tensor dout, {_PACKED}, Tensor? out, Tensor lse, {_OPTIONS}) -> (Tensor, Tensor, Tensor)"
)


def _varlen_flash(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    is_causal: bool,
    scale: float | None,
) -> tuple[Tensor, Tensor]:
    a, lse = (x.zero_() for x in _empty_results(q))
    for mine, theirs in _sequences(len(q), len(k), cu_seq_q, cu_seq_k, max_q, max_k):
        part = as_dense(q[mine]), as_dense(k[theirs]), as_dense(v[theirs])
        upper_left, mask = _causality(*part[:2], is_causal)
        rows, part_lse = _forward(*part, 0.0, upper_left, attn_mask=mask, scale=scale)
        a[mine] = as_packed(rows)
        lse[:, mine] = part_lse.squeeze(0)
    return a, lse


def _varlen_flash_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    out: Tensor | None,
    lse: Tensor,
    max_q: int,
    max_k: int,
    is_causal: bool,
    scale: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Without ``out`` it is zero."""
    out = dout.new_zeros(dout.shape[-1]).expand(dout.shape) if out is None else out
    dq, dk, dv = (x.new_zeros(x.shape) for x in (q, k, v))
    for mine, theirs in _sequences(len(q), len(k), cu_seq_q, cu_seq_k, max_q, max_k):
        part = as_dense(q[mine]), as_dense(k[theirs]), as_dense(v[theirs])
        upper_left, mask = _causality(*part[:2], is_causal)
        part_out = _seen_rows(as_dense(out[mine]), part[2], is_causal)
        rows = part_out, lse[:, mine].unsqueeze(0)
        grads = _backward(as_dense(dout[mine]), *part, *rows, 0.0, upper_left, attn_mask=mask, scale=scale)
        dv[theirs] = as_packed(grads[2])
        if part[1].shape[2] > 1:  # with one key the other two are zero
            dq[mine], dk[theirs] = (as_packed(grad) for grad in grads[:2])
    return dq, dk, dv


def _seen_rows(out: Tensor, v: Tensor, is_causal: bool) -> Tensor:
    """``out`` of one sequence, (1, H, T, d), the row that sees the first key alone as in `one_key`."""
    row = out.shape[2] - v.shape[2]
    if not is_causal or row < 0 or v.dtype not in LOW_PRECISION:
        return out
    return with_first_value(out.clone(), row, v)


def _empty_results(q: Tensor, *_others: object) -> tuple[Tensor, Tensor]:
    """Where A (T, H, d) and L (H, T) go, laid out as the dense kernel does."""
    wide = torch.promote_types(q.dtype, torch.float32)
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=wide).transpose(0, 1)


def _empty_gradients(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, *_others: object) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _sequences(
    tokens_q: int, tokens_k: int, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int
) -> Iterator[tuple[slice, slice]]:
    """Queries and keys of every sequence that has both; the rows and gradients of the others are zero."""
    queries = boundaries(cu_seq_q, tokens_q, "q", max_q)
    keys = boundaries(cu_seq_k, tokens_k, "k", max_k)
    for (q_begin, q_end), (k_begin, k_end) in zip(queries, keys, strict=True):
        if q_begin < q_end and k_begin < k_end:
            yield slice(q_begin, q_end), slice(k_begin, k_end)


def _causality(q: Tensor, k: Tensor, is_causal: bool) -> tuple[bool, Tensor | None]:
    """The kernel's own causal mask is aligned to the upper left: other lengths need an explicit one."""
    queries, keys = q.shape[2], k.shape[2]
    if not is_causal or queries == keys:
        return is_causal, None
    return False, torch.full((queries, keys), -torch.inf, dtype=q.dtype).triu(keys - queries + 1)


_LIBRARY.impl("varlen_flash", _varlen_flash, "CPU")
_LIBRARY.impl("varlen_flash_backward", _varlen_flash_backward, "CPU")
torch.library.register_fake("preconditioned_attention::varlen_flash", _empty_results, lib=_LIBRARY)
torch.library.register_fake("preconditioned_attention::varlen_flash_backward", _empty_gradients, lib=_LIBRARY)


def _save_for_plain(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.max_q, ctx.max_k, ctx.is_causal, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])


def _plain_backward(ctx: Any, dout: Tensor, _: None) -> tuple[Tensor | None, ...]:
    """The derivative of attention without `C`."""
    options = ctx.max_q, ctx.max_k, ctx.is_causal, ctx.scale
    grads = torch.ops.preconditioned_attention.varlen_flash_backward.default(dout, *ctx.saved_tensors, *options)
    return *grads, *(None,) * 6


torch.library.register_autograd(
    "preconditioned_attention::varlen_flash", _plain_backward, setup_context=_save_for_plain, lib=_LIBRARY
)


def _kernel_forward(inputs: KernelInputs, options: Options) -> tuple[Tensor, Tensor]:
    q, k, v, _, *cu_seqs = inputs
    a, lse = torch.ops.preconditioned_attention.varlen_flash.default(
        q, k, v, *cu_seqs, options.max_q, options.max_k, options.is_causal, options.scale
    )
    return a, lse


def _kernel_backward(dout: Tensor, inputs: KernelInputs, saved: Saved, options: Options) -> tuple[Tensor, ...]:
    q, k, v, _, *cu_seqs = inputs
    dq, dk, dv = torch.ops.preconditioned_attention.varlen_flash_backward.default(
        dout, q, k, v, *cu_seqs, saved.out, saved.lse, options.max_q, options.max_k, options.is_causal, options.scale
    )
    return dq, dk, dv


KERNELS["packed_flash_cpu"] = Kernel(_kernel_forward, _kernel_backward)


class PackedFlashCPU(PackedFlashBackend):
    """The packed backend ``"flash"`` on the CPU."""

    kernel = "packed_flash_cpu"

    def unsupported_reason(self, packed: PackedInputs) -> str | None:
        """Why the kernel cannot compute with ``packed``; None if it can."""
        return unsupported_by_cpu_flash(as_one_sequence(packed))

    def attend_plain(self, packed: PackedInputs) -> Tensor:
        """`Attn(q, k, v)` within each sequence, by an operator that is recorded as one."""
        inputs = packed.inputs
        a: Tensor = torch.ops.preconditioned_attention.varlen_flash.default(
            inputs.q, inputs.k, inputs.v, packed.cu_seq_q, packed.cu_seq_k, packed.max_q, packed.max_k,
            inputs.is_causal, inputs.scale,
        )[0]  # fmt: skip
        return a


PACKED_FLASH_CPU = PackedFlashCPU()
