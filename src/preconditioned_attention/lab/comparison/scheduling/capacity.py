"""How many worker processes this machine can take: its cores, memory and GPUs, as far as this process may use them."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from ...._checks import check_integer
from ...._extras import require

WORKER_BYTES = 2**29
"""What a worker needs at least: Python, torch, timm, and a small model (measured: 0.45 to 0.6 GB)."""

CGROUPS = Path("/sys/fs/cgroup")


def choose_workers(workers: int | None) -> int:
    """``workers``, or one per GPU, or without a GPU one per core, as far as the memory that is free allows.

    Raises:
        TypeError, ValueError: ``workers`` is not a whole number, below 1, or more than the memory can hold.
    """
    if workers is None:
        return gpu_count() or max(1, min(core_count(), free_memory() // (2 * WORKER_BYTES)))
    most = max(core_count(), total_memory() // WORKER_BYTES)
    if check_integer("workers", workers, minimum=1) > most:
        raise ValueError(
            f"workers must be at most {most}, because each needs {WORKER_BYTES / 2**30:g} GiB of memory or more and "
            f"this machine has {total_memory() / 2**30:.0f} GiB; got {workers}"
        )
    return workers


def gpu_count() -> int:
    """The number of GPUs that this process sees, and that can be given out one by one."""
    return torch.cuda.device_count()


def gpu_name(index: int) -> str:
    """What ``CUDA_VISIBLE_DEVICES`` must hold for the GPU of this index, in turn if there are fewer."""
    given = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    names = given or [str(number) for number in range(gpu_count())]
    return names[index % len(names)].strip()


def core_count() -> int:
    """The cores that this process may use: by its affinity and its control group."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    return affinity if quota is None else max(1, min(affinity, int(quota)))


def _quota() -> float | None:
    """The control group's share of the processor in cores, of either version of control groups; None without one."""
    try:
        share, period = (CGROUPS / "cpu.max").read_text().split()
        return None if share == "max" else int(share) / int(period)
    except (OSError, ValueError):
        quota, length = (_number(CGROUPS / "cpu" / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        return quota / length if quota and length and quota > 0 else None


def total_memory() -> int:
    """The memory in bytes that this process and its children may use."""
    machine = int(require("psutil", extra="train").virtual_memory().total)
    return min(machine, _memory_limit() or machine)


def free_memory() -> int:
    """What is free of it."""
    available = int(require("psutil", extra="train").virtual_memory().available)
    limit = _memory_limit()
    used = _number(CGROUPS / "memory.current") or _number(CGROUPS / "memory" / "memory.usage_in_bytes") or 0
    return available if limit is None else min(available, max(0, limit - used))


def _memory_limit() -> int | None:
    return _number(CGROUPS / "memory.max") or _number(CGROUPS / "memory" / "memory.limit_in_bytes")


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # there is no such file, or it says "max"
        return None
