"""Running a check in several processes that gloo connects: what one raises the test raises, and none is left behind."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
import torch.multiprocessing as mp

from tests.helpers.dtensor_worker import connect, free_port


def run_in_processes(world: int, check: Callable[..., None], *arguments: Any, timeout: float = 240) -> None:
    """``check(rank, *arguments)`` in ``world`` processes; a `TimeoutError` if they do not end in time."""
    processes = mp.spawn(_work, (world, free_port(), check, arguments), nprocs=world, join=False)
    end = time.monotonic() + timeout
    try:
        while not processes.join(timeout=1):
            if time.monotonic() > end:
                raise TimeoutError(f"{check.__name__} took longer than {timeout} s in {world} processes")
    finally:
        for process in processes.processes:
            process.kill()


def _work(rank: int, world: int, port: int, check: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    connect(rank, world, port)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    check(rank, *arguments)
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # not through the interpreter's end, as in `dtensor_worker`
