"""Checks of single arguments: they accept what `scaled_dot_product_attention` accepts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_NUMBERS = (float, int, torch.SymFloat, torch.SymInt)


def check_probability(name: str, value: Any) -> float:
    """``value`` as a number from 0 to 1.

    Raises:
        TypeError, ValueError: it is not one.
    """
    p = _number(name, value)
    if not 0 <= p <= 1:
        raise ValueError(f"{name} must be a probability, from 0 to 1; got {p!r}")
    return p


def check_scale(value: Any) -> float | None:
    """``value``, the factor of the scores, as a number or None.

    Raises:
        TypeError: it is neither, or a tensor that requires a gradient, which would not be computed.
    """
    return None if value is None else _number("scale", value, or_none=" or None (1 / sqrt(head_dim))")


def check_flag(name: str, value: Any) -> None:
    """Raise ``TypeError`` unless ``value`` is True or False."""
    if value is not True and value is not False and not isinstance(value, torch.SymBool):
        raise TypeError(f"{name} must be True or False; got {value!r}")


def check_mask(mask: Any) -> None:
    """Raise ``TypeError`` unless ``mask`` is None or a tensor."""
    if mask is not None and not isinstance(mask, Tensor):
        raise TypeError(
            f"attn_mask must be a tensor, boolean (True: attend) or added to the scores, or None; "
            f"got {type(mask).__name__}"
        )


def _number(name: str, value: Any, *, or_none: str = "") -> float:
    if isinstance(value, _NUMBERS):
        return value  # type: ignore[return-value]  # symbolic numbers stay what they are
    if isinstance(value, Tensor):
        return _of_tensor(name, value)
    if not hasattr(type(value), "__float__"):  # numpy's numbers have it
        raise TypeError(f"{name} must be a number{or_none}; got {value!r}")
    return float(value)


def _of_tensor(name: str, value: Tensor) -> float:
    if value.requires_grad:
        raise TypeError(
            f"{name} must be a number; got a tensor that requires a gradient, which it would not get. "
            + ("Multiply q by it and pass scale=1.0" if name == "scale" else "Pass a float")
        )
    if value.dim() != 0 or value.is_complex():
        raise TypeError(
            f"{name} must be a number or a real tensor without axes; got {value.dtype} of shape {tuple(value.shape)}"
        )
    return float(value)
