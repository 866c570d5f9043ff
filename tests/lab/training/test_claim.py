import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from preconditioned_attention.lab.training import train
from preconditioned_attention.lab.training.checkpoint import complete_checkpoints
from preconditioned_attention.lab.training.claim import CLAIM, LEASE_SECONDS, ClaimedError, ClaimLostError, RunClaim
from tests.helpers.toy_task import toy_config
from tests.helpers.training_worker import run_on_two

HOLD = """
import sys, time
from pathlib import Path
from preconditioned_attention.lab.training import train
from preconditioned_attention.lab.training.checkpoint import complete_checkpoints
from preconditioned_attention.lab.training.claim import RunClaim
claim = RunClaim(Path(sys.argv[1]), lease_seconds=float(sys.argv[2]))
claim.acquire()
print("claimed", flush=True)
time.sleep(60)
"""


@contextlib.contextmanager
def held(folder: Path, *, lease_seconds: float) -> Iterator[subprocess.Popen]:
    """Another process that has claimed ``folder``."""
    command = [sys.executable, "-c", HOLD, str(folder), str(lease_seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "claimed\n"
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def holder(tmp_path):
    with held(tmp_path, lease_seconds=LEASE_SECONDS) as process:
        yield process


def _from_another_machine(folder: Path) -> None:
    """Replace the claim's file by one of the same form that another machine wrote."""
    path = folder / CLAIM
    lines = path.read_text().replace(os.uname().nodename, "elsewhere")
    path.unlink()
    path.write_text(lines)


def _check_until_lost(claim: RunClaim, *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        claim.check()
        time.sleep(0.05)


def test_a_claim_is_a_file_that_the_last_release_removes(tmp_path):
    folder = tmp_path / "new" / "run"
    with RunClaim(folder) as claim:
        with RunClaim(folder):
            assert (folder / CLAIM).exists()
        assert (folder / CLAIM).exists()
        claim.check()
        assert claim.owner() == f"{os.getpid()} on {os.uname().nodename}"
    assert not (folder / CLAIM).exists()


def test_a_folder_that_a_living_process_writes_is_refused_by_name(tmp_path, holder):
    claim = RunClaim(tmp_path)
    assert not claim.try_acquire()
    with pytest.raises(ClaimedError, match=f"{tmp_path}.*process {holder.pid} on .*another folder"):
        claim.acquire()


def test_the_claim_of_a_killed_process_is_taken_over_at_once(tmp_path, holder):
    assert not RunClaim(tmp_path).try_acquire()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with RunClaim(tmp_path) as claim:
        assert claim.owner().startswith(f"{os.getpid()} ")


def test_the_claim_of_a_silent_machine_is_taken_over_after_the_lease_and_its_process_is_told(tmp_path):
    first = RunClaim(tmp_path, lease_seconds=0.6)
    first.acquire()
    _from_another_machine(tmp_path)
    deadline = time.monotonic() + 20
    with pytest.raises(ClaimLostError, match=r"taken over .* 0\.6 seconds"):
        _check_until_lost(first, seconds=20)
    first.release()
    second = RunClaim(tmp_path, lease_seconds=0.6)
    started = time.monotonic()
    while not second.try_acquire():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert time.monotonic() - started >= 0.5
    second.release()


def test_acquiring_outlasts_a_machine_that_is_gone_and_not_one_that_is_alive(tmp_path):
    gone, alive = tmp_path / "gone", tmp_path / "alive"
    with held(gone, lease_seconds=0.5), held(alive, lease_seconds=30.0):
        for folder in (gone, alive):
            _from_another_machine(folder)
    with RunClaim(gone, lease_seconds=0.5) as claim:
        assert claim.owner().startswith(f"{os.getpid()} ")
    beating = threading.Timer(0.5, os.utime, args=(alive / CLAIM,))
    beating.start()
    with pytest.raises(ClaimedError, match=r"process \d+ on elsewhere"):
        RunClaim(alive, lease_seconds=30.0).acquire()
    beating.join()


@pytest.mark.parametrize("content", ["", "garbage\n"])
def test_a_claim_that_was_not_written_to_its_end_is_taken_over(tmp_path, content):
    (tmp_path / CLAIM).write_text(content)
    with RunClaim(tmp_path, lease_seconds=0.4) as claim:
        assert claim.owner().startswith(f"{os.getpid()} ")
    assert list(tmp_path.iterdir()) == []


def test_a_new_claim_that_was_set_aside_is_put_back(tmp_path):
    claim = RunClaim(tmp_path, lease_seconds=0.4)
    (tmp_path / CLAIM).write_text("")
    assert not claim.try_acquire()
    (tmp_path / CLAIM).unlink()
    (tmp_path / CLAIM).write_text("new")
    assert not claim._set_aside()
    assert [path.read_text() for path in tmp_path.iterdir()] == ["new"]


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"overwrite": True}])
def test_a_live_run_is_neither_resumed_nor_replaced(tmp_path, holder, options):
    with pytest.raises(ClaimedError, match=f"the run in {tmp_path} is being written by process {holder.pid}"):
        train(toy_config(), tmp_path, progress=False, **options)
    assert [path.name for path in tmp_path.iterdir()] == [CLAIM]


def test_every_process_of_a_run_is_told_of_a_claim(tmp_path):
    with RunClaim(tmp_path / "run"):
        for run in run_on_two(toy_config(), tmp_path / "run"):
            assert not run.ended_well
            assert "ClaimedError: the run in" in run.errors


def test_a_run_within_a_claim_of_its_process_keeps_it(tmp_path):
    with RunClaim(tmp_path):
        train(toy_config(), tmp_path, progress=False)
        assert (tmp_path / CLAIM).exists()
    assert not (tmp_path / CLAIM).exists()


def test_a_run_that_was_taken_over_writes_nothing_more(tmp_path, monkeypatch):
    def taken_over(self: RunClaim) -> None:
        if (tmp_path / "checkpoints" / "step-00000004").exists():
            raise ClaimLostError("taken over")

    monkeypatch.setattr(RunClaim, "check", taken_over)
    with pytest.raises(ClaimLostError):
        train(toy_config(checkpoint_every=2), tmp_path, progress=False)
    assert list(complete_checkpoints(tmp_path / "checkpoints")) == [2, 4]
    assert not (tmp_path / "result.json").exists()
