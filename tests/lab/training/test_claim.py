import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from preconditioned_attention.lab.training import train
from preconditioned_attention.lab.training.checkpoint import complete_checkpoints
from preconditioned_attention.lab.training.claim import CLAIM, ClaimedError, ClaimLostError, RunClaim
from tests.helpers.toy_task import toy_config
from tests.helpers.training_worker import run_on_two

HOLD = """
import sys, time
from pathlib import Path
from preconditioned_attention.lab.training import train
from preconditioned_attention.lab.training.checkpoint import complete_checkpoints
from preconditioned_attention.lab.training.claim import RunClaim
claim = RunClaim(Path(sys.argv[1]))
claim.acquire()
print("claimed", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that has claimed ``tmp_path``."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "claimed\n"
        yield process
    finally:
        process.kill()
        process.wait()


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
    calls = iter(range(100))

    def taken_over(self: RunClaim) -> None:
        if next(calls) == 5:
            raise ClaimLostError("taken over")

    monkeypatch.setattr(RunClaim, "check", taken_over)
    with pytest.raises(ClaimLostError):
        train(toy_config(checkpoint_every=2), tmp_path, progress=False)
    assert list(complete_checkpoints(tmp_path / "checkpoints")) == [2, 4]
    assert not (tmp_path / "result.json").exists()
