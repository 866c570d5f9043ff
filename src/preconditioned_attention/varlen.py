"""`preconditioned_varlen_attention`: sequences of different lengths, packed into one tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from ._checks import check_integer
from ._symbolic import one_call
from .config import GRADIENTS, BackendName, Gradient, check_choice, check_eps
from .equilibration import check_gain, check_rows, default_eps
from .ops import AttentionInputs, PackedInputs, compute_packed
from .ops.arguments import check_flag, check_probability, check_scale
from .ops.autocast import attended_dtype


@one_call
def preconditioned_varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    gradient: Gradient = "full",
    gain: Tensor | None = None,
    eps: float | None = None,
    backend: BackendName = "auto",
) -> Tensor:
    r"""`C A` within each of several sequences that lie end to end: no padding, and no attention from one to another.

    The first seven arguments are those of :func:`torch.nn.attention.varlen.varlen_attn`; the method's are those of
    :func:`preconditioned_attention.preconditioned_attention`.

    Args:
        q: ``(T_q, H, d)``: the queries of all sequences, one after the other.
        k: ``(T_k, H, d)``; with ``enable_gqa`` its heads may be a divisor of ``H``.
        v: ``(T_k, H, d_v)``; heads as ``k``.
        cu_seq_q: where each sequence begins in ``q``, and ``T_q`` at the end: ``(sequences + 1,)``, int32, on the
            device of ``q``. Sequences may be empty.
        cu_seq_k: the same for ``k`` and ``v``. On a GPU the packed kernel does not check the values of either,
            which would wait for the device: wrong ones read and write out of bounds.
        max_q: the length of the longest sequence of queries, or more.
        max_k: the length of the longest sequence of keys, or more.
        dropout_p: dropout of the attention weights, applied whenever it is above 0.
        is_causal: the causal mask, aligned to the **lower right** of each sequence, as flash attention aligns it:
            its last query attends to its last key. `scaled_dot_product_attention` aligns to the upper left; where a
            sequence has as many queries as keys there is no difference.
        scale: of the scores; None is ``1 / sqrt(d)``.
        enable_gqa: let several query heads share a key and value head.
        gradient: ``"full"`` differentiates through `C`; ``"stop"`` holds it constant in the backward pass.
        gain: None, or one factor per query head, ``(H,)``.
        eps: rows with a norm of at most this stay as they are. None: 2**-14 in float16, 1e-12 otherwise.
        backend: ``"flash"``: the flash kernel of the device, re-normalized (on a GPU it takes the sequences
            packed, on the CPU one by one, and the row work is done once for all); any other name: that backend of
            `preconditioned_attention` on each sequence; ``"auto"``: the first that supports the call.

    Returns:
        ``(T_q, H, d_v)``. A query whose sequence has no key has a zero row.

    Raises:
        TypeError, ValueError: an argument does not fit, or the backend does not support the call; the message says why.

    Example:
        >>> q = torch.randn(7, 4, 32)
        >>> cu_seq = torch.tensor([0, 3, 7], dtype=torch.int32)  # sequences of 3 and 4 tokens
        >>> preconditioned_varlen_attention(q, q, q, cu_seq, cu_seq, 4, 4, is_causal=True).shape
        torch.Size([7, 4, 32])
    """
    _check_tensors(q, k, v, enable_gqa)
    _check_positions(cu_seq_q, cu_seq_k, q)
    check_choice("gradient", gradient, GRADIENTS)
    check_eps(eps)
    check_gain(gain, q.shape[1])
    check_flag("is_causal", is_causal)
    check_flag("enable_gqa", enable_gqa)
    inputs = AttentionInputs(
        q=q,
        k=k,
        v=v,
        attn_mask=None,
        dropout_p=check_probability("dropout_p", dropout_p),
        is_causal=is_causal,
        scale=check_scale(scale),
        enable_gqa=enable_gqa,
        gradient=gradient,
        gain=gain,
        eps=default_eps(attended_dtype(q)) if eps is None else eps,
    )
    longest = {"max_q": check_integer("max_q", max_q, minimum=0), "max_k": check_integer("max_k", max_k, minimum=0)}
    return compute_packed(PackedInputs(inputs=inputs, cu_seq_q=cu_seq_q, cu_seq_k=cu_seq_k, **longest), backend)


def _check_tensors(q: Tensor, k: Tensor, v: Tensor, enable_gqa: bool) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        check_rows(x, name)
        if x.dim() != 3:
            raise ValueError(f"{name} must have shape (tokens, heads, head_dim); got {tuple(x.shape)}")
    if not q.device == k.device == v.device:
        raise ValueError(f"q, k and v must be on one device; got {q.device}, {k.device} and {v.device}")
    if k.shape[:2] != v.shape[:2]:
        raise ValueError(f"k and v must have the same tokens and heads; got {tuple(k.shape)} and {tuple(v.shape)}")
    if q.shape[2] != k.shape[2]:
        raise ValueError(f"q and k must have one head dimension; got {q.shape[2]} and {k.shape[2]}")
    heads, shared = q.shape[1], k.shape[1]
    if heads != shared and not (enable_gqa and shared and heads % shared == 0):
        raise ValueError(
            f"q must have as many heads as k and v, or with enable_gqa=True a multiple of them; "
            f"got {heads} and {shared}"
        )


def _check_positions(cu_seq_q: Tensor, cu_seq_k: Tensor, q: Tensor) -> None:
    for name, cu_seq in (("cu_seq_q", cu_seq_q), ("cu_seq_k", cu_seq_k)):
        if not isinstance(cu_seq, Tensor) or cu_seq.dtype != torch.int32:
            came = cu_seq.dtype if isinstance(cu_seq, Tensor) else type(cu_seq).__name__
            raise TypeError(f"{name} must be an int32 tensor of shape (sequences + 1,); got {came}")
        if cu_seq.dim() != 1 or len(cu_seq) < 1:
            raise ValueError(f"{name} must have shape (sequences + 1,); got {tuple(cu_seq.shape)}")
        if cu_seq.device != q.device:
            raise ValueError(f"{name} must be on the device of q, {q.device}; got {cu_seq.device}")
    if len(cu_seq_q) != len(cu_seq_k):
        raise ValueError(
            f"cu_seq_q and cu_seq_k must hold as many sequences; got {len(cu_seq_q) - 1} and {len(cu_seq_k) - 1}"
        )
