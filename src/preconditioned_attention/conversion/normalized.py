"""Attention followed by a norm of its rows, which undoes C up to the eps of the norm."""

from __future__ import annotations

from torch import nn

from .adapter import HeadShape


def normalized_already(norm: object, shape: HeadShape) -> str | None:
    """Why a norm of the merged heads undoes C, or None: it does where there is one head.

    For every ``c > 0`` a norm of each row has ``norm(c a) = norm(a)``, up to its eps. With several heads in a row it
    does not undo C, which scales each of them by itself.
    """
    if shape.num_heads != 1 or not isinstance(norm, nn.Module) or isinstance(norm, nn.Identity):
        return None
    return f"normalized already: there is one head, and a {type(norm).__name__} of its rows follows, which undoes C"
