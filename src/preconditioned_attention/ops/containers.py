"""Where a call comes in: tensors that hold tensors are taken apart, attended and put together again."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Parameter

from ..config import Backend
from . import api, nested
from .call import Call


def attend(call: Call, backend: Backend) -> Tensor:
    """Compute `C Attn(q, k, v)`; nested and distributed q, k and v give a nested or distributed result.

    Raises:
        ValueError: see `api`, `nested` and `dtensor`.
    """
    tensors = (call.q, call.k, call.v)
    mask, gain = call.attn_mask, call.gain
    if _are_plain(*tensors) and (mask is None or _are_plain(mask)) and (gain is None or _are_plain(gain)):
        return api.attend(call, backend)  # the usual case, at the least cost
    if any(x.is_nested for x in tensors):
        return nested.attend(call, backend)
    if _any_distributed(tuple(x for x in (*tensors, mask, gain) if x is not None)):
        from . import dtensor  # it imports torch.distributed.tensor, which most programs never need

        return dtensor.attend(call, backend)
    return api.attend(call, backend)


def _are_plain(*tensors: Tensor) -> bool:
    return all(type(x) in (Tensor, Parameter) and not x.is_nested for x in tensors)


def _any_distributed(tensors: tuple[Tensor, ...]) -> bool:
    # Asked by type: is_traceable_wrapper_subclass denies it of a DTensor under torch.compile.
    if not torch.distributed.is_available() or all(type(x) in (Tensor, Parameter) for x in tensors):
        return False
    from torch.distributed.tensor import DTensor

    return any(isinstance(x, DTensor) for x in tensors)
