"""A process of its own that has a claim of a run's folder."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

SCRIPT = """
import sys
from pathlib import Path
from preconditioned_attention.lab.training.claim import RunClaim
claim = RunClaim(Path(sys.argv[1]))
claim.acquire()
print("claimed", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def holding(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Yield the process, which has the claim until the end of the block; kill it to leave a dead claim."""
    command = [sys.executable, "-c", SCRIPT, str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "claimed\n"
        yield process
    finally:
        process.kill()
        process.communicate()
