"""Attention whose heads' rows are normalised by what follows, so that C would change nothing but the norm's eps."""

from __future__ import annotations

from torch import nn

from .registry import HeadShape


def normalized_already(norm: object, shape: HeadShape) -> str | None:
    """Why a norm over all merged heads undoes C, or None: it does where there is one head.

    Row by row, ``norm(c a) = norm(a)`` for every ``c > 0``, up to its eps. Over several heads it is another thing: C
    has made their rows equally long before.
    """
    if shape.num_heads != 1 or not isinstance(norm, nn.Module) or isinstance(norm, nn.Identity):
        return None
    return f"normalised already: there is one head, and a {type(norm).__name__} of its rows follows, which undoes C"
