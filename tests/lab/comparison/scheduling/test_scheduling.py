"""Comparisons of the command line whose processes are killed, stopped, and doubled."""

import json
import os
import random
import secrets
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from preconditioned_attention.cli._interrupts import MESSAGE
from preconditioned_attention.lab.training.claim import RunClaim
from tests.helpers.comparison_results import results_without_times

ROOT = Path(__file__).resolve().parents[4]
RECIPE = ["compare", "digits", "--steps", "120", "--seeds", "0", "--learning-rates", "1e-3", "3e-3"]
RECIPE += ["--arms", "plain", "row", "--workers", "2"]
LIMIT_S = 600
GRACE_S = 30
TOKEN = "TEST_COMPARISON_TOKEN"


class Command:
    """A ``precond`` in a process group of its own, whose descendants can be found by a token in their environment."""

    def __init__(self, output: Path, *options: str) -> None:
        self.output = output
        self.token = secrets.token_hex(8)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1", TOKEN: self.token}
        command = [sys.executable, "-m", "preconditioned_attention", *RECIPE, "--output", str(output), *options]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,
        )

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, *error: object) -> None:
        for process in (self.process.pid, *self.descendants()):
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.communicate()

    def end(self, limit: float = LIMIT_S) -> tuple[int, str]:
        """Wait for the exit code and what was written to standard error."""
        errors = self.process.communicate(timeout=limit)[1]
        return self.process.returncode, errors

    def descendants(self) -> list[int]:
        """The living processes that this one has started, also after its death, and their own."""
        wanted = f"{TOKEN}={self.token}".encode()
        return [process for process in map(int, filter(str.isdigit, os.listdir("/proc"))) if self._has(process, wanted)]

    def _has(self, process: int, wanted: bytes) -> bool:
        try:
            alive = b"\nState:\tZ" not in Path(f"/proc/{process}/status").read_bytes()
            ours = wanted in Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
        except OSError:
            return False
        return alive and ours and process != self.process.pid

    def wait_for_checkpoint(self) -> Path:
        """Wait until a run has taken steps after a checkpoint; its folder."""
        return self._wait(lambda: next((path for path in self.runs() if 0 < _newest_checkpoint(path) < 100), None))

    def runs(self) -> list[Path]:
        """The folders of runs that have begun and not ended."""
        folders = self.output.glob("runs/*")
        return [path for path in folders if (path / ".claim").exists() and not (path / "run.json").exists()]

    def wait_until_alone(self) -> None:
        """Wait until no process that it has started is left."""
        self._wait(lambda: not self.descendants(), GRACE_S)

    def _wait(self, condition, limit: float = LIMIT_S):
        deadline = time.monotonic() + limit
        while not (found := condition()):
            assert time.monotonic() < deadline, f"{condition} did not come about; {self.process.poll()}"
            time.sleep(0.02)
        return found


def _steps(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_text().count('"kind": "step"') if path.exists() else 0


def _seconds(folder: Path, last: int) -> list[float]:
    """How long each step took: a step that is taken again takes another time."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["seconds"] for line in lines if line["kind"] == "step" and line["step"] <= last]


def _newest_checkpoint(folder: Path) -> int:
    steps = [int(path.name.removeprefix("step-")) for path in folder.glob("checkpoints/step-*")]
    return max(steps, default=0)


def _owner(folder: Path) -> int:
    return int(RunClaim(folder).owner().split()[0])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    with Command(output) as command:
        assert command.end()[0] == 0
    return results_without_times(output)


@pytest.mark.slow
def test_a_worker_that_is_killed_loses_at_most_what_came_after_its_checkpoint(tmp_path, undisturbed):
    with Command(tmp_path / "out") as command:
        folder = command.wait_for_checkpoint()
        os.kill(_owner(folder), signal.SIGKILL)
        saved = _newest_checkpoint(folder)
        before = _seconds(folder, saved)
        code, errors = command.end()
    assert code == 0, errors
    assert "was killed by SIGKILL while it did run" in errors
    assert _seconds(folder, saved) == before
    assert saved == 60
    assert results_without_times(tmp_path / "out") == undisturbed


@pytest.mark.slow
def test_when_the_driver_is_killed_its_workers_save_and_end_and_the_same_command_goes_on(tmp_path, undisturbed):
    with Command(tmp_path / "out") as command:
        folder = command.wait_for_checkpoint()
        command.process.kill()
        command.process.wait()
        command.wait_until_alone()
    if not (folder / "run.json").exists():
        assert _newest_checkpoint(folder) == _steps(folder)  # saved after the last step
    before = _seconds(folder, 120)
    with Command(tmp_path / "out", "--resume") as again:
        code, errors = again.end()
    assert code == 0, errors
    assert _seconds(folder, len(before)) == before
    assert results_without_times(tmp_path / "out") == undisturbed


@pytest.mark.slow
def test_two_comparisons_in_one_folder_share_the_runs(tmp_path, undisturbed):
    with Command(tmp_path / "out", "--resume") as one, Command(tmp_path / "out", "--resume") as two:
        ends = one.end(), two.end()
    assert [code for code, errors in ends] == [0, 0], ends
    assert results_without_times(tmp_path / "out") == undisturbed


@pytest.mark.slow
def test_ctrl_c_and_sigterm_at_any_moment_leave_a_folder_that_goes_on(tmp_path, undisturbed):
    moments = random.Random(0)
    output = tmp_path / "out"
    for turn in range(10):
        interrupt = turn % 2 == 0
        with Command(output, "--resume") as command:
            time.sleep(moments.uniform(0.5, 15.0))
            if command.process.poll() is not None:
                break
            if interrupt:
                os.killpg(command.process.pid, signal.SIGINT)
            else:
                command.process.send_signal(signal.SIGTERM)
            code, errors = command.end(GRACE_S + 10)
            assert command.descendants() == []
        if code == 0:  # it had finished
            break
        if code == -signal.SIGTERM:  # while Python was importing, before anything began
            assert "precond:" not in errors
            continue
        assert code == (130 if interrupt else 143), errors
        _check_message(errors, output)
        _check_files(output)
    with Command(output, "--resume") as command:
        code, errors = command.end()
    assert code == 0, errors
    assert results_without_times(output) == undisturbed


def _check_message(errors: str, output: Path) -> None:
    """Unless it came while Python was starting, the message holds the command that goes on, with all options."""
    (line,) = [line for line in errors.splitlines() if line.startswith("precond:")]
    if line == MESSAGE:
        return
    assert shlex.split(line.partition("Go on with: ")[2]) == ["precond", *RECIPE, "--output", str(output), "--resume"]


def _check_files(output: Path) -> None:
    left = [*output.rglob(".claim"), *output.rglob("*.writing*"), *output.rglob(".writing*"), *output.rglob(".probe*")]
    assert left == []
    for path in output.rglob("*.json"):
        json.loads(path.read_text())
