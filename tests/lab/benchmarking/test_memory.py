import platform
import subprocess
import sys

import pytest
import torch

from preconditioned_attention.lab.benchmarking.memory import keep_memory, saved_bytes


def test_counts_shared_storage_once() -> None:
    x = torch.randn(10, 10, requires_grad=True)
    assert saved_bytes(lambda: x.exp()) == 400
    assert saved_bytes(lambda: x * x.T) == 400


def test_needs_a_gradient() -> None:
    with pytest.raises(ValueError, match="requires no gradient"):
        saved_bytes(lambda: torch.ones(2))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep memory")
def test_what_is_freed_stays() -> None:
    """In a process of its own: the setting cannot be taken back."""
    script = """
import resource, torch
from preconditioned_attention.lab.benchmarking.memory import keep_memory
print(keep_memory())
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for turn in range(6):
    before = faults()
    kept = [torch.ones(2**20) for _ in range(8)]
    del kept
print(faults() - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    said, faults = done.stdout.splitlines()
    assert said == "glibc, freed memory kept"
    assert int(faults) < 100  # 32 MiB are 8192 pages


def test_elsewhere_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert keep_memory() == "default"
