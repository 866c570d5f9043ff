"""The cases run in a process of their own: on Python 3.13, what a process forks after it has used Ray crashes."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]
CASES = "tests/helpers/ray_cases.py"


def run_cases(marks: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marks, CASES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def test_on_two_nodes():
    run_cases("not slow")


@pytest.mark.slow
def test_errors_and_losses():
    run_cases("slow")
