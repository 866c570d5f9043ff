"""Sequences of different lengths in one tensor: what every way to attend within each of them is handed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

from torch import Tensor

from .call import Call


@dataclass(frozen=True, kw_only=True)
class Packed:
    """Sequences laid end to end along the first axis, and where each begins.

    ``call`` has q of shape (T_q, H, d), k and v of (T_k, H_kv, d), and no mask. Its ``is_causal`` is aligned to the
    lower right of every sequence, as flash attention aligns it: the last query attends to the last key.
    """

    call: Call
    cu_seq_q: Tensor  # (sequences + 1,), int32: where each sequence's queries begin, and T_q
    cu_seq_k: Tensor
    max_q: int
    max_k: int

    def as_one_sequence(self) -> Call:
        """A dense call of the same tensors, (1, H, T, d): what backends say of it, they say of the packed one."""
        q, k, v = (as_dense(x) for x in (self.call.q, self.call.k, self.call.v))
        return replace(self.call, q=q, k=k, v=v, is_causal=False)


def as_dense(x: Tensor) -> Tensor:
    """(T, H, d) as (1, H, T, d): a view."""
    return x.transpose(0, 1).unsqueeze(0)


def as_packed(x: Tensor) -> Tensor:
    """The inverse of :func:`as_dense`."""
    return x.squeeze(0).transpose(0, 1)


def boundaries(cu_seq: Tensor, tokens: int, name: str, longest: int | None = None) -> list[tuple[int, int]]:
    """Where each sequence begins and ends. On a GPU this waits for the device.

    Raises:
        ValueError: the positions are none, or a sequence is longer than ``longest``.
    """
    at: list[int] = cu_seq.tolist()
    if at[0] != 0 or at[-1] != tokens:
        raise ValueError(f"cu_seq_{name} must start at 0 and end at the number of tokens, {tokens}; got {at}")
    spans = list(pairwise(at))
    if any(begin > end for begin, end in spans):
        raise ValueError(f"cu_seq_{name} must not decrease; got {at}")
    if longest is not None and any(end - begin > longest for begin, end in spans):
        most = max(end - begin for begin, end in spans)
        raise ValueError(f"max_{name} must be at least the length of the longest sequence, {most}; got {longest}")
    return spans
