"""``one_thread``: PyTorch computes with one thread, so that a CPU's results do not depend on how many runs share it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread where there is no accelerator."""
    threads = torch.get_num_threads()
    if not torch.accelerator.is_available():
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
