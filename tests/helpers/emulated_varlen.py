"""PyTorch's CUDA flash operators for packed sequences on the CPU: same schemas, no softmax in the backward pass.

Each sequence goes through the dense emulation; the causal mask is aligned to the lower right.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor

from tests.helpers.emulated_cuda import SEED, _backward, _forward


def spans(cu_seq_q: Tensor, cu_seq_k: Tensor) -> Iterator[tuple[slice, slice]]:
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    for mine, theirs in zip(pairwise(cu_seq_q.tolist()), pairwise(cu_seq_k.tolist()), strict=True):
        yield slice(*mine), slice(*theirs)


def lower_right(queries: int, keys: int) -> Tensor:
    return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)


def _bias(queries: int, keys: int, is_causal: bool) -> Tensor | None:
    return torch.zeros(queries, keys).masked_fill(~lower_right(queries, keys), -torch.inf) if is_causal else None


def _one(x: Tensor, span: slice) -> Tensor:
    return x[span].transpose(0, 1)[None]


def _check(q: Tensor, k: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int) -> None:
    assert q.shape[-1] % 8 == 0
    assert cu_seq_q[-1] == len(q)
    assert cu_seq_k[-1] == len(k)
    assert max_q >= cu_seq_q.diff().max()
    assert max_k >= cu_seq_k.diff().max()


def flash(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, dropout_p, is_causal, return_debug_mask, *, scale=None):
    _check(q, k, cu_seq_q, cu_seq_k, max_q, max_k)
    a, lse = torch.zeros_like(q), torch.zeros(q.shape[1], len(q), dtype=torch.promote_types(q.dtype, torch.float32))
    for mine, theirs in spans(cu_seq_q, cu_seq_k):
        parts = _one(q, mine), _one(k, theirs), _one(v, theirs)
        bias = _bias(parts[0].shape[2], parts[1].shape[2], is_causal)
        rows, part_lse = _forward(*parts, bias, dropout_p, False, scale)
        a[mine], lse[:, mine] = rows[0].transpose(0, 1), part_lse[0]
    return a, lse, torch.tensor([SEED, 0], dtype=torch.uint64), torch.empty(0, dtype=torch.uint64), a.new_empty(0)


def flash_backward(
    dout, q, k, v, out, lse, cu_seq_q, cu_seq_k, max_q, max_k, dropout_p, is_causal, state, unused, *, scale=None
):
    _check(q, k, cu_seq_q, cu_seq_k, max_q, max_k)
    assert out.shape == dout.shape == q.shape
    assert lse.shape == (q.shape[1], len(q))
    assert state[0].item() == SEED
    assert unused.numel() == 0
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for mine, theirs in spans(cu_seq_q, cu_seq_k):
        parts = _one(q, mine), _one(k, theirs), _one(v, theirs)
        bias = _bias(parts[0].shape[2], parts[1].shape[2], is_causal)
        rows = _one(out, mine), lse[None, :, mine]
        grads = _backward(_one(dout, mine), *parts, bias, *rows, dropout_p, False, scale)
        dq[mine], dk[theirs], dv[theirs] = (grad[0].transpose(0, 1) for grad in grads[:3])
    return dq, dk, dv


@contextmanager
def emulated_varlen() -> Iterator[None]:
    """Within it the CUDA operators have CPU implementations."""
    library = torch.library.Library("aten", "IMPL", "CPU")
    library.impl("_flash_attention_forward", flash)
    library.impl("_flash_attention_backward", flash_backward)
    try:
        yield
    finally:
        library._destroy()
