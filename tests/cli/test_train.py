import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from preconditioned_attention.cli import main
from preconditioned_attention.lab.training import TrainConfig
from tests.helpers.digits_task import TASK, digits_options
from tests.helpers.training_worker import free_port, losses

RECIPE = f"""
train:
  task: {TASK}
  task_options: {json.dumps(digits_options(embed_dim=8, depth=1, num_heads=2))}
  steps: 4
  batch_size: 8
  learning_rate: 1e-3
  precision: float64
compare: {{seeds: [0, 1, 2], learning_rates: [1e-3]}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE)
    return str(path)


def test_one_run(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "run"
    options = [
        "--arm",
        "row-stopgrad",
        "--seed",
        "5",
        "--learning-rate",
        "0.01",
        "--steps",
        "6",
        "--output",
        str(output),
    ]
    assert main(["train", recipe, *options]) == 0
    config = TrainConfig.from_yaml((output / "config.yaml").read_text())
    assert (config.seed, config.learning_rate, config.steps) == (5, 0.01, 6)
    assert config.precondition.config.gradient == "stop"
    out = capsys.readouterr().out
    accuracy = json.loads((output / "result.json").read_text())["test"]["accuracy"]
    assert "arm row-stopgrad, seed 5, 6 steps" in out
    assert f"accuracy {accuracy:.4f}" in out
    assert str(output) in out


def test_an_arm_of_the_recipe_and_scores_without_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--steps", "2", "--task-options", "count=150", "held_out=40", "--output", str(tmp_path / "run")]
    assert main(["train", "listops", "--preset", "cpu", "--arm", "softmax", *options]) == 0
    out = capsys.readouterr().out
    assert "arm softmax" in out
    assert "test accuracy without a model: majority 0." in out
    assert "root operator 0." in out
    config = TrainConfig.from_yaml((tmp_path / "run" / "config.yaml").read_text())
    assert (config.task_options["attention"], config.precondition) == ("softmax", None)


def test_the_folder_is_named_after_the_run(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", recipe]) == 0
    assert (tmp_path / "runs" / "small-plain-seed0" / "result.json").exists()


def test_errors_are_one_line(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "run")
    assert main(["train", recipe, "--output", output]) == 0
    for arguments, message in [
        ([recipe, "--output", output], "already holds a run"),
        ([recipe, "--output", output, "--resume", "--arm", "row"], "precondition.gradient was None, is 'full'"),
        ([recipe, "--output", recipe], "cannot be written to"),
        ([recipe, "--arm", "row-full"], "unknown arm 'row-full'; known: plain, row, row-stopgrad"),
        ([recipe, "--learning-rate", "-1"], "learning_rate must be more than 0"),
        (["nothing"], "unknown recipe 'nothing'"),
        (["nothing.yaml"], "cannot be read"),
    ]:
        capsys.readouterr()
        assert main(["train", *arguments]) == 2
        err = capsys.readouterr().err
        assert err.startswith("precond: ")
        assert message in err
        assert err.count("\n") == 1
    assert main(["train", recipe, "--output", output, "--resume"]) == 0
    assert main(["train", recipe, "--output", output, "--overwrite", "--arm", "row"]) == 0


def test_resume_starts_or_goes_on(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", recipe, "--output", str(tmp_path / "new"), "--resume"]
    assert main(command) == 0
    first = capsys.readouterr().out
    assert main(command) == 0
    assert capsys.readouterr().out == first


def test_processes_without_a_launcher_are_one_line(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", recipe, "--output", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert "2 processes were launched, but RANK, MASTER_ADDR, MASTER_PORT are not set; start them with `torchrun" in err
    assert err.count("\n") == 1


def test_a_sharded_run(recipe: str, tmp_path: Path) -> None:
    for name, options in (("plain", []), ("sharded", ["--fsdp"])):
        assert main(["train", recipe, "--arm", "row", "--output", str(tmp_path / name), *options]) == 0
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "sharded")]
    assert weights[0] == weights[1]
    checkpoint = next((tmp_path / "sharded" / "checkpoints").iterdir())
    assert (checkpoint / ".metadata").exists()


def test_two_processes_by_torchrun(recipe: str, tmp_path: Path) -> None:
    assert main(["train", recipe, "--output", str(tmp_path / "one")]) == 0
    launcher = ["torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    command = [sys.executable, "-m", *launcher, "--master-port", str(free_port())]
    command += ["-m", "preconditioned_attention", "train", recipe, "--output", str(tmp_path / "two")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1", "GLOO_SOCKET_IFNAME": "lo"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("everything is in") == 1
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-8)
