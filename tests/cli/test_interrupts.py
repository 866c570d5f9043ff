import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from preconditioned_attention.cli import main
from preconditioned_attention.cli._interrupts import INTERRUPTED, MESSAGE, interruptible

DROPS = """
import os, signal, time
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(20)
except BaseException:
    pass  # as modules in C do that look for NumPy
"""
PROGRAM = """
import sys
from preconditioned_attention import cli

def call(command, arguments):
    import drops
    print("went on")

cli._call = call
sys.exit(cli.main(["train"]))
"""


def test_an_interrupt_that_an_import_drops_ends_the_command(tmp_path: Path) -> None:
    (tmp_path / "drops.py").write_text(DROPS)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", f"{MESSAGE}\n")


def test_an_interrupt_elsewhere_is_an_exception_that_cleans_up() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interruptible():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_another_handler_stays() -> None:
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does for what runs in the background
    try:
        with interruptible():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, former)


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("delay", [0.2, 1.0, 4.0])
def test_ctrl_c_in_a_terminal_ends_the_workers_too(delay: float, tmp_path: Path) -> None:
    """The terminal sends it to every process of the group, at any time of their start and work."""
    arguments = ["data", "listops", "--jobs", "2", "--count", "50000", "--output", str(tmp_path / "out")]
    process = subprocess.Popen(
        [sys.executable, "-m", "preconditioned_attention", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGINT)
        out, _ = process.communicate(timeout=40)
        assert group_ends(process.pid)
    finally:
        with_all_of_them_ended(process)
    assert process.returncode in (INTERRUPTED, -signal.SIGINT)  # the latter while Python itself starts
    assert "Traceback" not in out
    assert list(tmp_path.iterdir()) == []


def group_ends(group: int) -> bool:
    """Whether no process of the group is left; the one of `multiprocessing` that frees what is shared ends last."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def with_all_of_them_ended(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_the_command_says_that_it_was_interrupted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("preconditioned_attention.cli._call", lambda *_: signal.raise_signal(signal.SIGINT))
    assert main(["bench"]) == 130
    assert capsys.readouterr().err == f"{MESSAGE}\n"
