r"""Bounds on the condition number of an attention head by those of its input and weights.

`kappa` of a matrix is `s_max / s_min` over its `min(rows, columns)` singular values. The tool is submultiplicativity,

    kappa(B C) <= kappa(B) kappa(C),     B: m x k,  C: k x n,

which needs an assumption: `s_max(B C) <= s_max(B) s_max(C)` always holds, `s_min(B C) >= s_min(B) s_min(C)` needs the
inner dimension `k` to be between the outer ones (`m >= k >= n` or `m <= k <= n`). Then `||B C x|| >= s_min(B) ||C x||`
(or the same for the transposes). With `k` larger than both, `B = [1 0]` and `C = [0 1]^T` are perfectly conditioned and
`B C = 0`; with `k` smaller than both, `B C` has not full rank.

For a head with `X: N x D` and `W_Q, W_K, W_V: D x d` this means:

* softmax, `A = P V` with `P = softmax(..)` `N x N` and `V = X W_V`: `kappa(A) <= kappa(P) kappa(V)` whenever `P` is
  invertible, and `kappa(V) <= kappa(X) kappa(W_V)` if `N >= D >= d`. With fewer tokens than channels the second step
  fails. `kappa(P)` has no bound in `kappa(W_Q)` and `kappa(W_K)`: `W_Q = W_K = 0` makes `P` singular, and scaling
  them, which does not change their condition numbers, changes `kappa(P)` arbitrarily;
* linear, `A = Q K^T V`: `kappa(A) <= kappa(X)^3 kappa(W_Q) kappa(W_K) kappa(W_V)` if `N >= D = d`. The inner product
  `K^T V = W_K^T (X^T X) W_V` is where the theorem fails for several heads (`d < D`): its inner dimension is the
  largest. What still holds is `kappa(A) <= kappa(X) kappa(W_Q) kappa(K^T V)`.

The bounds are those of H. Saratchandran, S. Lucey, "Enhancing transformers through conditioned embedded tokens",
ICCV 2025, arXiv 2505.12789, as far as its summaries tell (`kappa(X)^3` for linear attention); the paper could not be
read in full, so the assumptions and the proofs are this project's own.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from ..condition import condition_number
from ..results import Conditioning
from ..spectrum import check_matrices
from .inequality import Assumption, Inequality, full_rank

_SOURCE = "after arXiv 2505.12789; assumptions and proof in theory/attention_bounds.py"


def softmax_attention_bound(weights: Tensor, x: Tensor, w_v: Tensor) -> Inequality:
    """`kappa(P X W_V) <= kappa(P) kappa(X) kappa(W_V)` for one head or a batch.

    Assumes `N >= D >= d` and full rank of `P`, `X` and `W_V`.

    Args:
        weights: `P`, the softmax matrix, ``(..., N, N)``.
        x: ``(..., N, D)``, the input of the projections.
        w_v: ``(..., D, d)``, so that `V = X W_V`. A bias is a last row of ``w_v`` and a last column of ones of ``x``.

    Raises:
        TypeError: complex or integer input.
        ValueError: matrices that are empty or do not fit together.
    """
    _check_square(weights)
    _check_product((weights, "weights"), (x, "x"), (w_v, "w_v"))
    return _inequality(
        "kappa(P X W_V) <= kappa(P) kappa(X) kappa(W_V)",
        condition_number(_double(weights) @ (_double(x) @ _double(w_v))),
        [(condition_number(weights), 1, "P"), (condition_number(x), 1, "X"), (condition_number(w_v), 1, "W_V")],
        _shapes("N >= D >= d", x.size(-2) >= x.size(-1) >= w_v.size(-1)),
    )


def softmax_attention_head_bound(weights: Tensor, v: Tensor) -> Inequality:
    """`kappa(P V) <= kappa(P) kappa(V)`: the bound for fewer tokens than channels.

    Assumes full rank of `P` and `V`, nothing about shapes. Cross-covariance and channel attention compute
    `A^T = P V^T` with a softmax matrix over channels: pass ``v.mT``.

    Args:
        weights: `P`, the softmax matrix, ``(..., N, N)``.
        v: ``(..., N, d)``.

    Raises:
        TypeError: complex or integer input.
        ValueError: matrices that are empty or do not fit together.
    """
    _check_square(weights)
    _check_product((weights, "weights"), (v, "v"))
    return _inequality(
        "kappa(P V) <= kappa(P) kappa(V)",
        condition_number(_double(weights) @ _double(v)),
        [(condition_number(weights), 1, "P"), (condition_number(v), 1, "V")],
        _shapes("any", True),
    )


def linear_attention_bound(x: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor) -> Inequality:
    """`kappa(X W_Q W_K^T X^T X W_V) <= kappa(X)^3 kappa(W_Q) kappa(W_K) kappa(W_V)`, the published form.

    Assumes `N >= D = d`, which one head of several does not meet, and full rank of `X` and the weights.

    Args:
        x: ``(..., N, D)``, the input of the projections.
        w_q, w_k, w_v: ``(..., D, d)``, so that `Q = X W_Q`.

    Raises:
        TypeError: complex or integer input.
        ValueError: matrices that are empty or do not fit together.
    """
    q, k, v = _projected(x, w_q, w_k, w_v)
    named = ((x, 3, "X"), (w_q, 1, "W_Q"), (w_k, 1, "W_K"), (w_v, 1, "W_V"))
    parts = [(condition_number(part), power, name) for part, power, name in named]
    return _inequality(
        "kappa(Q K^T V) <= kappa(X)^3 kappa(W_Q) kappa(W_K) kappa(W_V)",
        condition_number(q @ (k.mT @ v)),
        parts,
        _shapes("N >= D = d", x.size(-2) >= x.size(-1) == w_q.size(-1)),
    )


def linear_attention_head_bound(x: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor) -> Inequality:
    """`kappa(Q K^T V) <= kappa(X) kappa(W_Q) kappa(K^T V)`: the bound for one of many heads.

    Assumes `N >= D >= d` and full rank of `X`, `W_Q` and `K^T V`. Arguments and errors as
    :func:`linear_attention_bound`.
    """
    q, k, v = _projected(x, w_q, w_k, w_v)
    inner = k.mT @ v
    parts = [(condition_number(x), 1, "X"), (condition_number(w_q), 1, "W_Q")]
    return _inequality(
        "kappa(Q K^T V) <= kappa(X) kappa(W_Q) kappa(K^T V)",
        condition_number(q @ inner),
        [*parts, (condition_number(inner), 1, "K^T V")],
        _shapes("N >= D >= d", x.size(-2) >= x.size(-1) >= w_q.size(-1)),
    )


def _double(matrices: Tensor) -> Tensor:
    """Products are formed in float64, so that rounding is that of the factors."""
    return matrices.detach().to(torch.float64)


def _projected(x: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    for weight, name in ((w_q, "w_q"), (w_k, "w_k"), (w_v, "w_v")):
        _check_product((x, "x"), (weight, name))
    if not w_q.shape[-2:] == w_k.shape[-2:] == w_v.shape[-2:]:
        shapes = ", ".join(str(tuple(w.shape[-2:])) for w in (w_q, w_k, w_v))
        raise ValueError(f"w_q, w_k and w_v must have one shape (D, d); got {shapes}")
    return _double(x) @ _double(w_q), _double(x) @ _double(w_k), _double(x) @ _double(w_v)


def _check_square(weights: Tensor) -> None:
    check_matrices(weights)
    if weights.size(-1) != weights.size(-2):
        raise ValueError(f"weights must be square, as in self-attention; got shape {tuple(weights.shape)}")


def _check_product(*factors: tuple[Tensor, str]) -> None:
    for factor, _ in factors:
        check_matrices(factor)
    for (left, left_name), (right, right_name) in pairwise(factors):
        if left.size(-1) != right.size(-2):
            raise ValueError(
                f"{left_name} {tuple(left.shape)} and {right_name} {tuple(right.shape)} cannot be multiplied: "
                f"the last axis of {left_name} must have the size of the last but one of {right_name}"
            )


def _shapes(words: str, met: bool) -> tuple[str, bool]:
    return f"the shapes satisfy {words} (N tokens, D channels, d of the head)", met


def _inequality(
    statement: str, left: Conditioning, factors: list[tuple[Conditioning, int, str]], shapes: tuple[str, bool]
) -> Inequality:
    """Multiply the factors of the right side; each comes with its power and its name."""
    right, most = torch.ones_like(left.value), torch.ones_like(left.value)
    for conditioning, power, _ in factors:
        right, most = right * conditioning.value**power, most * conditioning.upper**power
    ranks = (full_rank(conditioning, name) for conditioning, _, name in factors)
    expanded = (Assumption(words=rank.words, met=rank.met.expand(right.shape)) for rank in ranks)
    return Inequality(
        statement=statement,
        source=_SOURCE,
        left=left.value,
        right=right,
        holds=~(left.lower > most),
        assumptions=(Assumption(words=shapes[0], met=torch.full_like(right, shapes[1], dtype=torch.bool)), *expanded),
    )
