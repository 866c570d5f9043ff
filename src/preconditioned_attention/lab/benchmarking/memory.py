"""Bytes saved for the backward pass, and a setting of the C allocator for stable timings."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable

import torch
from torch import Tensor


def saved_bytes(compute: Callable[[], Tensor]) -> int:
    """Bytes that ``compute`` saves for its backward pass; shared storages count once.

    Raises:
        ValueError: the result requires no gradient, so nothing is saved.
    """
    storages: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = compute()
    if not out.requires_grad:
        raise ValueError("the result of compute requires no gradient: give it an input that does")
    return sum(storages.values())


def keep_memory() -> str:
    """Make glibc keep freed memory, as in a process that holds a model; return the allocator's setting in words.

    Otherwise a process that only calls attention returns the top of its heap to the system in every turn, and page
    faults take up to a fifth of the time of short sequences, unevenly between candidates. Other C libraries are left
    unchanged.
    """
    if platform.libc_ver()[0] != "glibc":
        return "default"
    trim_threshold, mmap_threshold = (-1, 2**31 - 1), (-3, 32 * 2**20)  # <malloc.h>; the second one's largest value
    library = ctypes.CDLL(None)
    kept = library.mallopt(*trim_threshold) and library.mallopt(*mmap_threshold)
    return "glibc, freed memory kept" if kept else "default"
