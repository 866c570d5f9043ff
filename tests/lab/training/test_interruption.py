import contextlib
import json
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor, nn

from preconditioned_attention.lab.recipes import load_recipe
from preconditioned_attention.lab.tasks import TASKS, Splits
from preconditioned_attention.lab.training import Interrupted, TrainConfig, TrainResult, interruption, train
from preconditioned_attention.lab.training import loop as loop_module
from preconditioned_attention.lab.training.checkpoint import complete_checkpoints
from preconditioned_attention.lab.training.interruption import StopSignals
from tests.helpers.digits_task import TASK, digits_options
from tests.helpers.toy_task import Toy, toy_config
from tests.helpers.training_worker import Run, free_port, losses, run_on_two

SIGNALS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
calls: dict[str, int] = {}
due: dict[tuple[str, int], list[int]] = {}


def passing(place: str) -> None:
    """Send this process the signals that are due at the next call from ``place``."""
    calls[place] = calls.get(place, 0) + 1
    for number in due.pop((place, calls[place]), []):
        signal.raise_signal(number)


@dataclass(kw_only=True)
class Watched(Toy):
    """Sends the process that trains it signals at chosen calls."""

    name = "watched"

    def build_model(self) -> nn.Module:
        passing("build_model")
        return super().build_model()

    def datasets(self) -> Splits:
        passing("datasets")
        return super().datasets()

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        loss = super().loss(model, batch)
        passing("loss")
        return loss

    def evaluate(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        passing("evaluate")
        return super().evaluate(model, batch)

    def pictures(self, model: nn.Module) -> dict[str, object]:
        passing("pictures")
        return {}


@pytest.fixture(autouse=True)
def _watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    calls.clear()
    due.clear()
    monkeypatch.setitem(TASKS, "watched", Watched)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def config(**changes: object) -> TrainConfig:
    options = {"accumulation_steps": 2, "ema_decay": 0.9, "evaluate_every": 3, "checkpoint_every": 4, "keep_best": True}
    options |= {"steps": 10, "task": "watched", "task_options": {"dropout": 0.3, "batch_norm": True}}
    return toy_config(**{**options, **changes})


def assert_same_run(one: TrainResult, other: TrainResult) -> None:
    assert (one.losses, one.evaluations, one.test) == (other.losses, other.evaluations, other.test)
    torch.testing.assert_close(one.model.state_dict(), other.model.state_dict(), rtol=0, atol=0)


# 13 validation examples are three micro-batches: evaluation 7 is in the third evaluation, after step 9.
@pytest.mark.parametrize(
    ("place", "call", "step"),
    [
        ("build_model", 1, None),
        ("datasets", 1, None),
        ("loss", 1, 0),  # in the first micro-batch of the first step
        ("loss", 2, 1),  # in its last: the step is finished
        ("loss", 9, 4),
        ("loss", 10, 5),
        ("loss", 20, 10),
        ("evaluate", 1, 3),
        ("evaluate", 7, 9),
        ("evaluate", 11, 10),
        ("evaluate", 14, 10),  # on the test split
    ],
)
@SIGNALS
def test_a_stopped_run_ends_as_one_that_was_not(
    tmp_path: Path, place: str, call: int, step: int | None, number: signal.Signals
) -> None:
    whole = train(config(), tmp_path / "whole", progress=False)
    calls.clear()
    due[place, call] = [number]
    with pytest.raises(Interrupted) as caught:
        train(config(), tmp_path / "stopped", progress=False)
    assert caught.value.exit_code == 128 + number
    saved = list(complete_checkpoints(tmp_path / "stopped" / "checkpoints"))
    if step is None:
        assert str(caught.value) == f"{number.name} came before the first step; there was nothing to save"
    else:
        assert str(caught.value).startswith(f"{number.name} after step {step} of 10. ")
    if step:
        assert f"is saved in {tmp_path}/stopped/checkpoints/step-{step:08d}" in str(caught.value)
        assert max(saved) == step
    else:
        assert saved == []
    assert_same_run(train(config(), tmp_path / "stopped", resume=True, progress=False), whole)


@pytest.mark.parametrize("place", ["save_checkpoint", "save_weights", "write_report", "write_result"])
def test_what_is_being_written_is_written_to_its_end(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(config(), tmp_path / "whole", progress=False)
    write = getattr(loop_module, place)

    def watched(*args: object) -> object:
        passing(place)
        return write(*args)

    monkeypatch.setattr(loop_module, place, watched)
    due[place, 1] = [signal.SIGTERM]
    with pytest.raises(Interrupted) as caught:
        train(config(), tmp_path / "stopped", progress=False)
    if place == "save_checkpoint":
        assert list(complete_checkpoints(tmp_path / "stopped" / "checkpoints")) == [4]
    else:
        assert str(caught.value) == "SIGTERM came when the run had finished; nothing of it is lost"
        written = json.loads((tmp_path / "stopped" / "result.json").read_text())
        assert written["test"] == whole.test
    assert_same_run(train(config(), tmp_path / "stopped", resume=True, progress=False), whole)


def test_a_second_interrupt_stops_at_once_and_a_second_termination_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interruption, "FORWARDED_SECONDS", 0.0)
    due["loss", 5] = [signal.SIGTERM, signal.SIGTERM]
    with pytest.raises(Interrupted, match="SIGTERM after step 2"):
        train(config(), tmp_path / "terminated", progress=False)
    calls.clear()
    due["loss", 5] = [signal.SIGINT, signal.SIGINT]
    with pytest.raises(KeyboardInterrupt) as caught:
        train(config(), tmp_path / "interrupted", progress=False)
    assert not isinstance(caught.value, Interrupted)
    assert complete_checkpoints(tmp_path / "interrupted" / "checkpoints") == {}


def test_an_interrupt_that_a_wrapper_passes_on_counts_once(tmp_path: Path) -> None:
    due["loss", 5] = [signal.SIGINT, signal.SIGINT]
    with pytest.raises(Interrupted, match="SIGINT after step 2"):
        train(config(), tmp_path, progress=False)


def test_a_full_disk_is_said_beside_the_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise loop_module.WriteError("no room")

    monkeypatch.setattr(loop_module, "save_checkpoint", full)
    due["loss", 3] = [signal.SIGTERM]
    with pytest.raises(Interrupted, match=r"SIGTERM after step 1 of 10\. .* could not be saved: no room"):
        train(config(), tmp_path, progress=False)


def test_signals_that_the_program_ignores_stay_ignored(tmp_path: Path) -> None:
    due["loss", 3] = [signal.SIGTERM]
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        assert train(config(), tmp_path, progress=False).step
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_other_threads_train_without_handlers(tmp_path: Path) -> None:
    thread = threading.Thread(target=train, args=(config(), tmp_path), kwargs={"progress": False})
    thread.start()
    thread.join(60)
    assert (tmp_path / "result.json").exists()


def _sleep(started: Any) -> None:
    started.set()
    time.sleep(60)


def test_a_forked_process_keeps_the_handlers_of_the_program() -> None:
    context = multiprocessing.get_context("fork")
    started = context.Event()
    with StopSignals() as signals:
        signals.defer()
        process = context.Process(target=_sleep, args=(started,))
        process.start()
        assert started.wait(20)  # Python drops signals that come while it forks
        process.terminate()
        process.join(20)
        assert process.exitcode == -signal.SIGTERM


def test_a_signal_whose_exception_was_swallowed_is_not_forgotten() -> None:
    with pytest.raises(Interrupted, match="SIGINT came before the first step"):
        _defer_after_a_swallowed_signal()


def _defer_after_a_swallowed_signal() -> None:
    with StopSignals() as signals:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signals.defer()


def test_comes_back_from_another_process() -> None:
    error = pickle.loads(pickle.dumps(Interrupted("saved", signal.SIGTERM)))
    assert (str(error), error.exit_code) == ("saved", 143)


def test_processes_stop_at_the_same_step(tmp_path: Path) -> None:
    slow = config(
        task="toy", steps=40, batch_size=20, task_options={"pause": 0.02, "batch_norm": True}, keep_best=False
    )
    port, output = free_port(), tmp_path / "stopped"
    runs = [Run(slow, output, rank=rank, port=port) for rank in (0, 1)]
    runs[1].signal_at(6, signal.SIGTERM)
    for run in runs:
        assert "Interrupted" in run.end().errors
        assert "SIGTERM after step" in run.errors
    (step,) = list(complete_checkpoints(output / "checkpoints"))[-1:]
    assert 6 <= step < 40
    for number in range(2):
        options = {"resume": True} if number else {}
        for run in run_on_two(slow, (tmp_path / "whole", output)[number], **options):
            assert run.ended_well, run.errors
    assert losses(output) == losses(tmp_path / "whole")


RECIPE = f"""
train:
  task: {TASK}
  task_options: {json.dumps(digits_options(embed_dim=8, depth=1, num_heads=2))}
  steps: 4000
  batch_size: 8
  learning_rate: 1e-3
  workers: 2
compare: {{seeds: [0, 1, 2], learning_rates: [1e-3]}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "long.yaml"
    path.write_text(RECIPE)
    return path


@contextlib.contextmanager
def launched(command: list[str], *, errors: Path) -> Iterator[subprocess.Popen]:
    """A process in a session of its own, which is killed at the end."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1", "GLOO_SOCKET_IFNAME": "lo"}
    with errors.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], env=environment, stderr=file, start_new_session=True
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)


def wait_for_steps(output: Path, count: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    path = output / "metrics.jsonl"
    while not path.exists() or path.read_text().count("\n") < count:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_whole_group_of_the_command_is_stopped(recipe: Path, tmp_path: Path, number: int, code: int) -> None:
    """As a terminal and SLURM do it: the processes that load data get the signal too."""
    output, errors = tmp_path / "run", tmp_path / "errors.txt"
    command = ["preconditioned_attention", "train", str(recipe), "--output", str(output), "--overwrite"]
    with launched(command, errors=errors) as process:
        wait_for_steps(output, 3, process)
        os.killpg(process.pid, number)
        assert process.wait(60) == code
    (checkpoint,) = complete_checkpoints(output / "checkpoints").values()
    message = errors.read_text()
    assert f"is saved in {checkpoint}" in message
    assert message.endswith(f"Go on with: precond train {recipe} --output {output} --resume\n")
    assert "Traceback" not in message
    assert not (output / ".claim").exists()


@pytest.mark.slow
def test_one_command_of_torchrun_stops_and_goes_on(recipe: Path, tmp_path: Path) -> None:
    """Stopped as a scheduler does it, and started again by the same command, it ends as it should."""
    text = RECIPE.replace("steps: 4000", "steps: 120\n  checkpoint_every: 20").replace("workers: 2", "workers: 0")
    recipe.write_text(text)
    output, errors = tmp_path / "run", tmp_path / "errors.txt"
    command = ["torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    command += ["--master-port", str(free_port()), "-m", "preconditioned_attention", "train", str(recipe)]
    command += ["--output", str(output), "--resume"]
    with launched(command, errors=errors) as launcher:
        wait_for_steps(output, 25, launcher)
        launcher.terminate()
        launcher.wait(60)
    assert f"SIGTERM after step {max(complete_checkpoints(output / 'checkpoints'))} of 120" in errors.read_text()
    with launched(command, errors=errors) as launcher:
        assert launcher.wait(180) == 0, errors.read_text()
    alone = train(load_recipe(str(recipe)).train, tmp_path / "alone", progress=False)
    assert losses(output) == pytest.approx(alone.losses, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_torchrun_restarts_a_killed_process_and_the_run_goes_on(recipe: Path, tmp_path: Path, rank: int) -> None:
    recipe.write_text(RECIPE.replace("steps: 4000", "steps: 120\n  checkpoint_every: 20"))
    output, errors = tmp_path / "run", tmp_path / "errors.txt"
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    command += ["-m", "preconditioned_attention", "train", str(recipe), "--output", str(output), "--resume"]
    with launched(command, errors=errors) as launcher:
        wait_for_steps(output, 25, launcher)
        workers = psutil.Process(launcher.pid).children()
        (killed,) = (worker for worker in workers if worker.environ().get("RANK") == str(rank))
        killed.kill()
        assert launcher.wait(180) == 0, errors.read_text()
    assert re.search(r"resuming .* after step [2-9]0", errors.read_text())
    alone = train(load_recipe(str(recipe)).train, tmp_path / "alone", progress=False)
    assert losses(output) == pytest.approx(alone.losses, rel=1e-3)
