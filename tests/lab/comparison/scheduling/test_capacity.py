import os

import psutil
import pytest
import torch

from preconditioned_attention.lab.comparison.scheduling import capacity
from preconditioned_attention.lab.comparison.scheduling.capacity import (
    WORKER_BYTES,
    choose_workers,
    core_count,
    free_memory,
    gpu_name,
    total_memory,
)


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    """Eight cores, 16 GiB of which 12 are free, no GPU, and a folder for the files of a control group."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    memory = psutil.virtual_memory()._replace(total=2**34, available=12 * 2**30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(capacity, "CGROUPS", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


def write(folder, **files):
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def test_one_worker_per_core():
    assert (core_count(), choose_workers(None)) == (8, 8)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu_dot_max": "max 100000\n"}, 8),
        ({"cpu_dot_max": "250000 100000\n"}, 2),
        ({"cpu_dot_max": "50000 100000\n"}, 1),
        ({"cpu_dot_max": "1600000 100000\n"}, 8),
        ({"cpu__cpu_dot_cfs_quota_us": "300000\n", "cpu__cpu_dot_cfs_period_us": "100000\n"}, 3),
        ({"cpu__cpu_dot_cfs_quota_us": "-1\n", "cpu__cpu_dot_cfs_period_us": "100000\n"}, 8),
    ],
)
def test_a_control_group_limits_the_cores(machine, files, cores):
    write(machine, **files)
    assert (core_count(), choose_workers(None)) == (cores, cores)


@pytest.mark.parametrize(
    ("files", "free", "total"),
    [
        ({"memory_dot_max": "max\n", "memory_dot_current": "5\n"}, 12, 16),
        ({"memory_dot_max": str(4 * 2**30), "memory_dot_current": str(2**30)}, 3, 4),
        ({"memory__memory_dot_limit_in_bytes": str(2**31), "memory__memory_dot_usage_in_bytes": str(2**30)}, 1, 2),
        ({"memory__memory_dot_limit_in_bytes": str(2**63 - 4096)}, 12, 16),
    ],
)
def test_memory_limits_the_workers(machine, files, free, total):
    write(machine, **files)
    assert (free_memory(), total_memory()) == (free * 2**30, total * 2**30)
    assert choose_workers(None) == min(8, free * 2**30 // (2 * WORKER_BYTES))


def test_at_least_one_worker(machine):
    write(machine, memory_dot_max="100", memory_dot_current="99")
    assert choose_workers(None) == 1


def test_one_worker_per_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert choose_workers(None) == 3
    assert [gpu_name(index) for index in range(4)] == ["0", "1", "2", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, GPU-7b, 2")
    assert [gpu_name(index) for index in range(4)] == ["5", "GPU-7b", "2", "5"]


def test_a_number_that_is_given_is_taken_if_the_memory_can_hold_it():
    assert [choose_workers(number) for number in (1, 8, 32)] == [1, 8, 32]
    with pytest.raises(ValueError, match=r"workers must be at most 32, .*16 GiB; got 1000000"):
        choose_workers(1_000_000)


@pytest.mark.parametrize("number", [0, -1])
def test_less_than_one_worker_is_refused(number):
    with pytest.raises(ValueError, match=f"workers must be at least 1; got {number}"):
        choose_workers(number)


@pytest.mark.parametrize("number", [True, 2.0, "2"])
def test_what_is_no_number_of_workers_is_refused(number):
    with pytest.raises(TypeError, match="workers must be an integer of at least 1"):
        choose_workers(number)
