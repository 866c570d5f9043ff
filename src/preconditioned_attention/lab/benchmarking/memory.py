"""What a computation keeps for its backward pass, counted exactly; and memory that stays with the process."""

from __future__ import annotations

import ctypes
import platform
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


def keep_memory() -> str:
    """Have the C library keep what is freed, as happens anyway in a process that holds a model; say what it does.

    A process that only calls attention frees the top of its heap in every turn, glibc gives it back, and the next turn
    pays a page fault for every 4 KiB: up to a fifth of the time of short sequences, now on one candidate, now on the
    other. Elsewhere than with glibc nothing is changed.
    """
    if platform.libc_ver()[0] != "glibc":
        return "default"
    trim_threshold, mmap_threshold = (-1, 2**31 - 1), (-3, 32 * 2**20)  # <malloc.h>; the second one's largest value
    library = ctypes.CDLL(None)
    kept = library.mallopt(*trim_threshold) and library.mallopt(*mmap_threshold)
    return "glibc, freed memory kept" if kept else "default"
