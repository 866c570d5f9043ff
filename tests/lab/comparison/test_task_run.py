import dataclasses
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from preconditioned_attention import ConditionMonitor, is_preconditioned
from preconditioned_attention.lab.comparison import Prepare, compare, task_run, task_settings
from preconditioned_attention.lab.comparison.task_run import TaskRun, measure_conditioning
from preconditioned_attention.lab.tasks import TASKS, ImageClassification
from preconditioned_attention.lab.training import Arm, TrainConfig, load_trained, train
from tests.helpers.comparison_results import results_without_times
from tests.helpers.digits_task import TASK, digits_options

OPTIONS = digits_options(patch_size=4, embed_dim=16, depth=2, num_heads=2)
CONFIG = TrainConfig(
    task=TASK, task_options=OPTIONS, steps=3, batch_size=16, learning_rate=1.0, evaluate_every=2, checkpoint_every=1
)


def test_numbers_are_those_of_the_training_itself(tmp_path):
    metrics = task_run(CONFIG)(Prepare(Arm(), folder=tmp_path / "compared"), 5, 1e-3)
    config = dataclasses.replace(CONFIG, seed=5, learning_rate=1e-3, precondition=Arm())
    expected = train(config, tmp_path / "run", progress=False)
    assert metrics.losses == expected.losses
    assert metrics.validation == expected.validation["accuracy"]
    assert metrics.test == expected.test["accuracy"]
    assert [row["step"] for row in metrics.evaluations] == [2, 3]
    assert metrics.extra["test_metrics"]["loss"] == expected.test["loss"]


def test_attention_is_looked_at_before_and_after_training(tmp_path):
    metrics = task_run(CONFIG)(Prepare(None, folder=tmp_path), 0, 1e-2)
    moments = [(row["moment"], row["layer"]) for row in metrics.conditioning if row["moment"] != "training"]
    assert moments == [(moment, f"blocks.{index}.attn") for moment in ("initialization", "end") for index in (0, 1)]
    on_the_way = [(row["step"], row["layer"]) for row in metrics.conditioning if row["moment"] == "training"]
    assert on_the_way == [(step, f"blocks.{index}.attn") for step in (1, 2, 3) for index in (0, 1)]
    for row in metrics.conditioning:
        assert row["kappa_before"] >= 1
        assert row["spread_before"] > row["spread_after"]
    assert metrics.conditioning[0]["kappa_before"] != metrics.conditioning[2]["kappa_before"]


def test_looking_changes_nothing():
    model = ImageClassification(**OPTIONS).build_model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    rows = measure_conditioning(model, ImageClassification(**OPTIONS).example_batch())
    assert len(rows) == 2
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_condition_numbers_are_those_of_double_precision():
    # 16 patches of 4 x 4 pixels in one head of width 16: far from singular, yet beyond what float32 resolves.
    task = ImageClassification(**digits_options(embed_dim=16, depth=1, num_heads=1))
    model = task.build_model()
    shown = measure_conditioning(model, task.example_batch())[0]["kappa_before"]
    with ConditionMonitor(model.double().eval()) as monitor, torch.no_grad():
        model(task.example_batch()[0].double())
    assert shown == monitor.summary()[0]["kappa_before"]


def test_arms_of_a_real_comparison_start_alike_and_end_apart(tmp_path):
    comparison = compare(
        task_run(CONFIG),
        seeds=(0, 1),
        learning_rates=(1e-2,),
        output=tmp_path,
        settings=task_settings(CONFIG),
        verbose=False,
    )
    records = [record for record in comparison.records.values() if record.key.seed == 0]
    assert len(records) == 3
    assert all(record.finished for record in records)
    assert len({record.weights[0] for record in records}) == 1
    assert len({tuple(record.metrics.losses) for record in records}) == 3
    assert len({record.metrics.losses[0] for record in records if record.key.arm != "plain"}) == 1
    settings = json.loads((tmp_path / "summary.json").read_text())["settings"]
    assert settings["steps"] == 3
    assert "learning_rate" not in settings


def test_divergence_is_told_without_the_folder_which_keeps_its_last_state(tmp_path, monkeypatch):
    class Broken(nn.Module):
        """Passes on its input, from the third step on as numbers that are none."""

        steps = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.steps += self.training
            return x * math.nan if self.steps > 2 else x

    class BrokenTask(ImageClassification):
        def build_model(self) -> nn.Module:
            model = super().build_model()
            model.head = nn.Sequential(model.head, Broken())
            return model

    monkeypatch.setitem(TASKS, TASK, BrokenTask)
    with pytest.raises(RuntimeError, match="nan") as caught:
        task_run(CONFIG)(Prepare(None, folder=tmp_path), 0, 1e-3)
    assert str(tmp_path) not in str(caught.value)
    assert (tmp_path / "checkpoints" / "step-00000002").is_dir()


def test_a_finished_run_is_a_folder_of_train_without_checkpoints(tmp_path):
    prepare = Prepare(Arm(), folder=tmp_path)
    task_run(CONFIG)(prepare, 3, 1e-3)
    assert {"config.yaml", "metrics.jsonl", "result.json", "model.safetensors"} <= {p.name for p in tmp_path.iterdir()}
    assert not (tmp_path / "checkpoints").exists()
    config = TrainConfig.from_yaml((tmp_path / "config.yaml").read_text())
    assert (config.seed, config.learning_rate, config.precondition) == (3, 1e-3, Arm())
    assert is_preconditioned(load_trained(tmp_path)[1])
    assert len(prepare.weights) == len(prepare.random_states) == 1


def test_the_initial_state_that_is_hashed_is_that_of_the_training(tmp_path):
    prepare = Prepare(Arm(), folder=tmp_path)
    task_run(CONFIG)(prepare, 3, 1e-3)
    result = json.loads((tmp_path / "result.json").read_text())
    assert [result["initial_weights"]] == prepare.weights
    assert [result["random_state"]] == prepare.random_states


def test_a_killed_run_goes_on_from_its_newest_checkpoint(tmp_path):
    """It loses at most one interval of checkpoints, and ends as if it had not been killed."""
    config = dataclasses.replace(CONFIG, steps=120, checkpoint_every=20, evaluate_every=50)
    options = {"arms": {"plain": None}, "seeds": (0,), "learning_rates": (1e-3,), "verbose": False}
    script = f"""
from tests.lab.comparison.test_task_run import *
compare(task_run(TrainConfig.from_dict({config.to_dict()!r})), output={str(tmp_path / "killed")!r}, **{options!r})
"""
    folder = tmp_path / "killed" / "runs" / "plain-seed0-lr0.001"
    with subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[3], env=with_tests()) as process:
        try:
            deadline = time.monotonic() + 120
            while steps_in(folder) < 50 and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.002)
        finally:
            process.kill()
    assert process.wait() == -signal.SIGKILL
    done, counted = steps_in(folder), []
    assert 50 <= done < 120
    hook = register_optimizer_step_post_hook(lambda *_: counted.append(1))
    compare(task_run(config), output=tmp_path / "killed", resume=True, **options)
    assert 120 - done <= len(counted) <= 120 - done + 20
    counted.clear()
    (folder / "run.json").unlink()
    compare(task_run(config), output=tmp_path / "killed", resume=True, **options)
    assert counted == [], "the record was lost, not the training"
    compare(task_run(config), output=tmp_path / "whole", **options)
    hook.remove()
    assert len(counted) == 120
    assert results_without_times(tmp_path / "killed") == results_without_times(tmp_path / "whole")
    assert not (folder / "checkpoints").exists()


def with_tests() -> dict[str, str]:
    paths = [str(Path(__file__).parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def steps_in(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_text().count('"kind": "step"') if path.exists() else 0


def test_a_resumed_comparison_may_have_other_intervals_of_checkpoints(tmp_path):
    options = {"arms": {"plain": None}, "seeds": (0,), "learning_rates": (1e-3,), "verbose": False}
    (tmp_path / "runs" / "plain-seed0-lr0.001").mkdir(parents=True)
    begun = TaskRun(CONFIG)._configure(Prepare(None), 0, 1e-3)
    (tmp_path / "runs" / "plain-seed0-lr0.001" / "config.yaml").write_text(begun.to_yaml())
    changed = dataclasses.replace(CONFIG, checkpoint_every=2, keep_checkpoints=5)
    comparison = compare(task_run(changed), output=tmp_path, resume=True, **options)
    assert [record.status for record in comparison.records.values()] == ["finished"]


def test_the_record_says_how_many_threads_computed(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        options = {"arms": {"plain": None}, "seeds": (0,), "learning_rates": (1e-3,), "verbose": False}
        comparison = compare(task_run(CONFIG), output=tmp_path, **options)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    expected = 2 if torch.accelerator.is_available() else 1
    assert [machine.environment["threads"] for machine in comparison.machines] == [expected]


def test_it_can_be_pickled_and_needs_a_folder():
    run = task_run(CONFIG)
    again = pickle.loads(pickle.dumps(run))
    assert again == run
    assert "batch" not in vars(again)
    with pytest.raises(ValueError, match=r"prepare\.folder must be the run's folder"):
        again(Prepare(None), 0, 1e-3)


def test_what_the_data_is_and_what_the_model_writes_go_along(tmp_path, monkeypatch):
    class Writing(ImageClassification):
        def samples(self, model):
            assert not model.training
            return {"from nothing": "once upon a time"}

        def describe_data(self):
            return {"sha256": "abc"}

    monkeypatch.setitem(TASKS, TASK, Writing)
    metrics = task_run(CONFIG)(Prepare(None, folder=tmp_path), 0, 1e-2)
    assert metrics.extra["samples"] == {"from nothing": "once upon a time"}
    assert task_settings(CONFIG)["data"] == {"sha256": "abc"}
