"""Time and memory of `preconditioned_attention` relative to plain attention, by shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ...functional import preconditioned_attention
from .correctness import check_result
from .memory import saved_bytes
from .shapes import Shape
from .timing import time_against_first

CHECKED_TOKENS = 512  # the float64 reference is quadratic in memory: longer shapes are checked on their first tokens
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the CSV file: a candidate with a shape. Ratios are to plain attention in the same turn."""

    shape: str
    batch: int
    heads: int
    length: int
    keys: int
    head_dim: int
    dtype: str
    mode: str
    measured: str
    candidate: str
    turns: int
    median_ms: float
    ratio_p20: float
    ratio_p50: float
    ratio_p80: float
    saved_bytes: int | None
    peak_bytes: int | None


def measure_shape(shape: Shape, dtype: torch.dtype, *, compiled: bool, device: str, seconds: float) -> Iterator[Row]:
    """Check, then time, every candidate with ``shape``: forward, and forward and backward unless it is for inference.

    Raises:
        WrongResultError: a result differs from the reference; nothing is timed.
    """
    q, k, v = _inputs(shape, dtype, device)
    tokens = slice(CHECKED_TOKENS)
    for gradient in ("full", "stop"):
        check_result(
            q[:1, :, tokens], k[:1, :, tokens], v[:1, :, tokens],
            is_causal=shape.is_causal, gradient=gradient, backend="auto",
        )  # fmt: skip
    candidates = _candidates(shape, compiled=compiled)
    weight = torch.randn_like(q).transpose(1, 2).contiguous().transpose(1, 2)  # strides as after merging heads
    for measured in ("forward", "forward+backward") if shape.trains else ("forward",):
        run = _forward if measured == "forward" else partial(_forward_backward, weight=weight)
        runs = {name: partial(run, f, q, k, v) for name, f in candidates.items()}
        for name, timing in time_against_first(runs, seconds=seconds).items():
            yield Row(
                shape=shape.name, batch=shape.batch, heads=shape.heads, length=shape.length, keys=shape.keys,
                head_dim=shape.head_dim, dtype=str(dtype).removeprefix("torch."),
                mode="compiled" if compiled else "eager", measured=measured, candidate=name, turns=timing.turns,
                median_ms=timing.median_seconds * 1e3,
                ratio_p20=timing.ratio_p20, ratio_p50=timing.ratio_p50, ratio_p80=timing.ratio_p80,
                saved_bytes=None if measured == "forward" else saved_bytes(partial(candidates[name], q, k, v)),
                peak_bytes=peak_bytes(partial(run, candidates[name], q, k, v)),
            )  # fmt: skip


def _inputs(shape: Shape, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """With the memory layout of a projection's output: (B, N, H, d)."""
    q, k, v = (
        torch.randn(shape.batch, length, shape.heads, shape.head_dim, dtype=dtype, device=device)
        for length in (shape.length, shape.keys, shape.keys)
    )
    return tuple(x.transpose(1, 2).requires_grad_() for x in (q, k, v))  # type: ignore[return-value]


def _candidates(shape: Shape, *, compiled: bool) -> dict[str, Attend]:
    candidates: dict[str, Attend] = {
        "plain": partial(F.scaled_dot_product_attention, is_causal=shape.is_causal),
        "full": partial(preconditioned_attention, is_causal=shape.is_causal, gradient="full"),
        "stop": partial(preconditioned_attention, is_causal=shape.is_causal, gradient="stop"),
        "composition": partial(preconditioned_attention, is_causal=shape.is_causal, backend="composition"),
    }
    if not compiled:
        return candidates
    return {name: torch.compile(attend, fullgraph=True) for name, attend in candidates.items()}


def _forward(attend: Attend, q: Tensor, k: Tensor, v: Tensor) -> None:
    with torch.no_grad():
        attend(q, k, v)


def _forward_backward(attend: Attend, q: Tensor, k: Tensor, v: Tensor, *, weight: Tensor) -> None:
    torch.autograd.grad(attend(q, k, v), (q, k, v), weight)


def peak_bytes(run: Callable[[], object]) -> int | None:
    """The peak of allocated CUDA memory; None on the CPU."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated()
