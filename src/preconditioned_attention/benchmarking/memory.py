"""What a computation keeps for its backward pass, counted exactly."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def saved_bytes(compute: Callable[[], Tensor]) -> int:
    """Bytes that ``compute`` saves for its backward pass; storages that are shared count once.

    Raises:
        ValueError: the result needs no gradient, so nothing is saved.
    """
    storages: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = compute()
    if not out.requires_grad:
        raise ValueError("the result of compute needs no gradient: give it an input that does")
    return sum(storages.values())
