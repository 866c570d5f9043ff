"""PyTorch's CUDA attention operators on the CPU: same schemas and conventions, no softmax in the backward pass.

The arguments of the backward operator are so checked as on a GPU: the emulation only ever forms
`exp(scores - lse)` from the lse that it is given, and `delta` from the `dout` and `out` that it is given.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

PADDING = 32  # to a multiple of this memory-efficient attention pads its lse


def _repeat(x: Tensor, heads: int) -> Tensor:
    return x.repeat_interleave(heads // x.shape[1], dim=1)


def _scores(q: Tensor, k: Tensor, bias: Tensor | None, is_causal: bool, scale: float | None) -> Tensor:
    scores = q @ _repeat(k, q.shape[1]).mT * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if bias is not None:
        scores = scores + bias
    if is_causal:
        scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(), -torch.inf)
    return scores


def dropout_factors(seed: int, shape: torch.Size, p: float) -> Tensor:
    """What the kernel multiplies the weights with; the backward operator draws it again from the state."""
    if p == 0:
        return torch.ones(shape, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(shape, generator=generator, dtype=torch.float64) >= p).double() / (1 - p)


SEED = 1234


def _forward(q, k, v, bias, dropout_p, is_causal, scale) -> tuple[Tensor, Tensor]:
    wide = [x.double() for x in (q, k, v)]
    scores = _scores(wide[0], wide[1], None if bias is None else bias.double(), is_causal, scale)
    lse = scores.logsumexp(-1)
    lse = lse.masked_fill(lse == -torch.inf, torch.inf)  # the sentinel of a row that attends to nothing
    weights = (scores - lse.unsqueeze(-1)).exp() * dropout_factors(SEED, scores.shape, dropout_p)
    a = (weights @ _repeat(wide[2], q.shape[1])).to(q.dtype)
    return a, lse.to(torch.promote_types(q.dtype, torch.float32))


def _backward(dout, q, k, v, bias, out, lse, dropout_p, is_causal, scale) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    heads, groups = q.shape[1], q.shape[1] // k.shape[1]
    qd, kd, vd, dod = (x.double() for x in (q, k, v, dout))
    scores = _scores(qd, kd, None if bias is None else bias.double(), is_causal, scale)
    weights = (scores - lse.double().unsqueeze(-1)).exp()
    factors = dropout_factors(SEED, scores.shape, dropout_p)
    delta = (dod * out.double()).sum(-1, keepdim=True)
    ds = weights * (dod @ _repeat(vd, heads).mT * factors - delta)
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale

    def shared(x: Tensor) -> Tensor:  # the gradient of a key head that several query heads share
        return x.unflatten(1, (k.shape[1], groups)).sum(2)

    dq, dk, dv = ds @ _repeat(kd, heads) * factor, shared(ds.mT @ qd) * factor, shared((weights * factors).mT @ dod)
    return dq.to(q.dtype), dk.to(q.dtype), dv.to(q.dtype), ds.to(q.dtype)


def flash(q, k, v, dropout_p=0.0, is_causal=False, return_debug_mask=False, *, scale=None):
    assert q.shape[-1] % 8 == 0
    a, lse = _forward(q, k, v, None, dropout_p, is_causal, scale)
    a = a.transpose(1, 2).contiguous().transpose(1, 2)
    state = torch.tensor([SEED, 0], dtype=torch.uint64), torch.tensor(0, dtype=torch.uint64)
    return a, lse, None, None, q.shape[2], k.shape[2], *state, a.new_empty(0)


def flash_backward(
    dout, q, k, v, out, lse, cum_q, cum_k, max_q, max_k, dropout_p, is_causal, seed, offset, *, scale=None
):
    assert (cum_q, cum_k, max_q, max_k) == (None, None, q.shape[2], k.shape[2])
    assert seed.dtype == torch.uint64
    assert seed[0].item() == SEED
    assert offset.dtype == torch.uint64
    return _backward(dout, q, k, v, None, out, lse, dropout_p, is_causal, scale)[:3]


def efficient(q, k, v, bias, compute_log_sumexp, dropout_p=0.0, is_causal=False, *, scale=None):
    assert compute_log_sumexp
    if bias is not None:
        assert bias.shape == (*q.shape[:3], k.shape[2])
        assert bias.stride(-2) % 16 == 0, "rows of a bias must be aligned"
        assert bias.dtype == q.dtype
    a, lse = _forward(q, k, v, bias, dropout_p, is_causal, scale)
    padded = torch.full((*lse.shape[:2], math.ceil(lse.shape[2] / PADDING) * PADDING), torch.nan, dtype=lse.dtype)
    padded[..., : lse.shape[2]] = lse
    a = a.transpose(1, 2).contiguous().transpose(1, 2)
    return a, padded, torch.tensor(SEED), torch.tensor(0)


def efficient_backward(
    dout, q, k, v, bias, out, lse, seed, offset, dropout_p, grad_input_mask, is_causal=False, *, scale=None
):
    queries = q.shape[2]
    assert lse[..., queries:].isnan().all(), "the padding of lse must stay as it was"
    assert (seed.item(), offset.item()) == (SEED, 0)
    assert all(grad_input_mask[:3])
    *grads, dbias = _backward(dout, q, k, v, bias, out, lse[..., :queries], dropout_p, is_causal, scale)
    return *grads, dbias if grad_input_mask[3] else dbias.new_empty(0)


def cudnn(q, k, v, bias, compute_log_sumexp, dropout_p=0.0, is_causal=False, return_debug_mask=False, *, scale=None):
    assert compute_log_sumexp
    a, lse = _forward(q, k, v, bias, dropout_p, is_causal, scale)
    out = torch.empty_like(q[..., :1].expand(*q.shape[:3], v.shape[-1])).copy_(a)
    return out, lse.unsqueeze(-1), None, None, q.shape[2], k.shape[2], torch.tensor(SEED), torch.tensor(0), None


def cudnn_backward(
    dout, q, k, v, out, lse, seed, offset, bias, cum_q, cum_k, max_q, max_k, dropout_p, is_causal, *, scale=None
):
    assert (cum_q, cum_k, max_q, max_k) == (None, None, q.shape[2], k.shape[2])
    assert lse.shape == (*q.shape[:3], 1)
    assert (seed.item(), offset.item()) == (SEED, 0)
    return _backward(dout, q, k, v, bias, out, lse.squeeze(-1), dropout_p, is_causal, scale)[:3]


@contextmanager
def emulated() -> Iterator[None]:
    """Within it the CUDA operators have CPU implementations."""
    library = torch.library.Library("aten", "IMPL", "CPU")
    for name, forward, backward in [
        ("flash", flash, flash_backward),
        ("efficient", efficient, efficient_backward),
        ("cudnn", cudnn, cudnn_backward),
    ]:
        library.impl(f"_scaled_dot_product_{name}_attention", forward)
        library.impl(f"_scaled_dot_product_{name}_attention_backward", backward)
    try:
        yield
    finally:
        library._destroy()
