"""What autocast does to a call."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from .._compiler import assume_constant_result


def autocast_dtype(device: str) -> torch.dtype | None:
    """The dtype of autocast on a type of device; None where it is off."""
    known = device in ("cpu", "cuda")  # faster than is_autocast_available
    if not (known or _is_available(device)) or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def attended_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which `scaled_dot_product_attention` would attend to ``x``, autocast considered."""
    dtype = autocast_dtype(x.device.type)
    return x.dtype if dtype is None or x.dtype == torch.float64 else dtype


def lowered(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` in the dtype of autocast, unless it is boolean or float64."""
    return x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x


def without_autocast(device: str) -> AbstractContextManager[object]:
    """A context in which every operation keeps its dtype."""
    known = device in ("cpu", "cuda") or _is_available(device)  # not for meta tensors
    return torch.autocast(device, enabled=False) if known else nullcontext()


@assume_constant_result  # torch 2.11 cannot trace it
def _is_available(device: str) -> bool:
    return torch.amp.is_autocast_available(device)
