import dataclasses
import json
import platform
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from preconditioned_attention import is_preconditioned
from preconditioned_attention.diagnostics import MonitorConfig
from preconditioned_attention.lab.tasks import TASKS, OptimizerSettings
from preconditioned_attention.lab.training import ARMS, NonFiniteError, TrainConfig, WriteError, train
from preconditioned_attention.lab.training import loop as loop_module
from preconditioned_attention.lab.training.checkpoint import complete_checkpoints
from tests.helpers.digits_task import TASK, digits_options
from tests.helpers.toy_task import Toy, toy_config

DIGITS = {"task": TASK, "task_options": digits_options(embed_dim=8, depth=1, num_heads=2), "steps": 2}


def test_learns_and_reports(tmp_path: Path) -> None:
    config = toy_config(steps=60, learning_rate=0.05, evaluate_every=20, warmup_steps=5)
    result = train(config, tmp_path / "run", progress=False)
    assert result.test["accuracy"] > 0.7
    assert len(result.losses) == 60
    assert result.losses[-1] < 0.5 * result.losses[0]
    assert [evaluation["step"] for evaluation in result.evaluations] == [20, 40, 60]
    assert result.evaluations[-1] == {"step": 60, **result.validation}
    assert result.seconds_per_step > 0
    assert not result.model.training
    written = json.loads((tmp_path / "run" / "result.json").read_text())
    assert written["test"] == result.test
    assert TrainConfig.from_dict(written["config"]) == config
    assert written["environment"]["host"] == platform.node()
    assert written["environment"]["packages"]["torch"] == torch.__version__.split("+")[0]
    weights = load_file(tmp_path / "run" / "model.safetensors")
    torch.testing.assert_close(weights, dict(result.model.state_dict()), rtol=0, atol=0)


class OwnOptimizer(Toy):
    """Brings an optimizer and a schedule of its own."""

    name = "own-optimizer"

    def make_optimizer(self, model: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)

    def make_scheduler(
        self, optimizer: torch.optim.Optimizer, settings: OptimizerSettings
    ) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.5, total_iters=settings.steps)


def test_a_task_brings_its_own_optimizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "own-optimizer", OwnOptimizer)
    options = {"task": "own-optimizer", "steps": 10, "learning_rate": 0.5, "weight_decay": 0.3}
    train(toy_config(**options), tmp_path / "run", progress=False)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rates = [record["learning_rate"] for record in records if record["kind"] == "step"]
    assert rates == pytest.approx([0.5 - 0.025 * step for step in range(10)])


def test_the_seed_decides_everything(tmp_path: Path) -> None:
    config = toy_config(task_options={"dropout": 0.3})
    one, same = (train(config, tmp_path / name, progress=False) for name in ("one", "same"))
    other = train(dataclasses.replace(config, seed=1), tmp_path / "other", progress=False)
    assert one.losses == same.losses != other.losses
    assert one.test == same.test


def test_the_average_is_what_is_evaluated_and_returned(tmp_path: Path) -> None:
    plain = train(toy_config(), tmp_path / "plain", progress=False)
    averaged = train(toy_config(ema_decay=0.9), tmp_path / "averaged", progress=False)
    assert averaged.losses == plain.losses
    assert averaged.test != plain.test
    assert averaged.model.state_dict().keys() == plain.model.state_dict().keys()


@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_the_best_weights_are_tested_and_returned(ema_decay: float | None, tmp_path: Path) -> None:
    config = toy_config(steps=30, learning_rate=0.5, evaluate_every=2, checkpoint_every=2, keep_checkpoints=30)
    config = dataclasses.replace(config, ema_decay=ema_decay)
    last = train(config, tmp_path / "last", progress=False)
    config = dataclasses.replace(config, keep_best=True)
    best = train(config, tmp_path / "best", progress=False)
    assert best.evaluations == last.evaluations
    accuracies = [evaluation["accuracy"] for evaluation in best.evaluations]
    first = best.evaluations[accuracies.index(max(accuracies))]
    assert first["step"] < 30, "the last weights are the best ones, so this test says nothing"
    assert {"step": best.step, **best.validation} == first
    assert (last.step, best.test == last.test) == (30, False)
    checkpoint = complete_checkpoints(tmp_path / "best" / "checkpoints")[best.step]
    kept = load_file(checkpoint / ("model.safetensors" if ema_decay is None else "average.safetensors"))
    kept = {name.removeprefix("module."): tensor for name, tensor in kept.items() if name != "n_averaged"}
    torch.testing.assert_close(dict(best.model.state_dict()), kept, rtol=0, atol=0)
    again = train(config, tmp_path / "best", resume=True, progress=False)
    assert (again.step, again.test, again.validation) == (best.step, best.test, best.validation)


def test_resuming_a_finished_run_gives_its_result(tmp_path: Path) -> None:
    config = toy_config(ema_decay=0.9, evaluate_every=4)
    first = train(config, tmp_path / "run", progress=False)
    again = train(config, tmp_path / "run", resume=True, progress=False)
    assert (again.test, again.validation, again.losses) == (first.test, first.validation, first.losses)
    assert (again.evaluations, again.seconds_per_step) == (first.evaluations, first.seconds_per_step)
    torch.testing.assert_close(again.model.state_dict(), first.model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("keep_best", [False, True])
def test_a_finished_run_without_checkpoints_is_read_and_not_trained(tmp_path: Path, keep_best: bool) -> None:
    config = toy_config(**DIGITS, precondition=ARMS["row"], precision="float64", monitor=MonitorConfig(every=1))
    config = dataclasses.replace(config, keep_best=keep_best, ema_decay=0.5, evaluate_every=1)
    first = train(config, tmp_path, progress=False)
    shutil.rmtree(tmp_path / "checkpoints")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    again = train(config, tmp_path, resume=True, progress=False)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    torch.testing.assert_close(again.model.state_dict(), first.model.state_dict(), rtol=0, atol=0)
    for name in (field.name for field in dataclasses.fields(first)):
        if name not in ("model", "conditioning"):
            assert getattr(again, name) == getattr(first, name), name
    assert repr(again.conditioning) == repr(first.conditioning)
    assert len(again.conditioning) == 2


def test_the_rest_of_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    train(toy_config(), tmp_path, progress=False)
    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"result\.json, but neither its weights, model\.safetensors, nor"):
        train(toy_config(), tmp_path, resume=True, progress=False)


def test_resume_starts_what_has_not_begun(tmp_path: Path) -> None:
    whole = train(toy_config(), tmp_path / "whole", progress=False)
    for name in ("missing", "empty", "begun"):
        folder = tmp_path / name
        if name != "missing":
            folder.mkdir()
        if name == "begun":  # killed between config.yaml and metrics.jsonl
            (folder / "config.yaml").write_text(toy_config().to_yaml())
        assert train(toy_config(), folder, resume=True, progress=False).losses == whole.losses


def test_an_evaluation_that_is_missing_is_repeated(tmp_path: Path) -> None:
    options = {"evaluate_every": 4, "checkpoint_every": 4, "keep_checkpoints": 9, "keep_best": True}
    config, output = toy_config(**options, learning_rate=0.1), tmp_path / "run"
    whole = train(config, output, progress=False)
    checkpoints = complete_checkpoints(output / "checkpoints")
    for step in (8, 12):
        shutil.rmtree(checkpoints[step])
    (checkpoints[4] / "best.safetensors").unlink()  # as if the state had been saved before the evaluation
    for step in (4, 0):
        lines = (output / "metrics.jsonl").read_text().splitlines(keepends=True)
        kept = [line for line in lines if f'"evaluation", "step": {step}' not in line]
        (output / "metrics.jsonl").write_text("".join(kept))
        again = train(config, output, resume=True, progress=False)
        assert (again.evaluations, again.losses, again.test) == (whole.evaluations, whole.losses, whole.test)
        for step in (8, 12):
            shutil.rmtree(checkpoints[step])


class Unmeasurable(Toy):
    """Its metric is not a number on the test split, the last batch of which has 4 examples."""

    name = "unmeasurable"

    def evaluate(self, model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> dict[str, torch.Tensor]:
        values = super().evaluate(model, batch)
        return values | {"accuracy": values["accuracy"] / (float("nan") if len(batch[0]) == 4 else 1.0)}


def test_a_test_metric_that_is_not_finite_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "unmeasurable", Unmeasurable)
    config = toy_config(task="unmeasurable", batch_size=13)
    for resume in (False, True):
        with pytest.raises(NonFiniteError, match=r"step 12: test metrics .*nan.*step-00000012"):
            train(config, tmp_path, resume=resume, progress=False)
        assert not (tmp_path / "result.json").exists()


def test_the_arm_is_applied(tmp_path: Path) -> None:
    for arm, config in ARMS.items():
        result = train(toy_config(**DIGITS, precondition=config), tmp_path / arm, progress=False)
        assert is_preconditioned(result.model) == (arm != "plain")


def test_arms_begin_with_the_same_hashes_and_another_seed_with_others(tmp_path: Path) -> None:
    configs = {arm: toy_config(**DIGITS, precondition=config) for arm, config in ARMS.items()}
    configs["other"] = toy_config(**DIGITS, seed=1)
    for name, config in configs.items():
        train(config, tmp_path / name, progress=False)
    written = {name: json.loads((tmp_path / name / "result.json").read_text()) for name in configs}
    hashes = {name: (result["initial_weights"], result["random_state"]) for name, result in written.items()}
    assert len({hashes[arm] for arm in ARMS}) == 1
    assert not set(hashes["other"]) & set(hashes["plain"])


def test_prepare_gets_the_new_model_once(tmp_path: Path) -> None:
    seen = []

    def prepare(model: nn.Module) -> nn.Module:
        seen.append(model)
        model.add_module("5", nn.Linear(3, 3))  # the optimizer must get to know it
        return model

    result = train(toy_config(), tmp_path, prepare=prepare, progress=False)
    assert len(seen) == 1
    assert result.model is seen[0]
    torch.manual_seed(0)
    assert not torch.equal(result.model[5].weight, nn.Linear(3, 3).weight)


def test_prepare_must_return_the_model(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="prepare must return the model"):
        train(toy_config(), tmp_path, prepare=lambda model: None, progress=False)  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match=r"prepare replaces config\.precondition"):
        train(toy_config(precondition=ARMS["row"]), tmp_path, prepare=lambda model: model, progress=False)


def test_an_arm_without_attention_leaves_the_old_run(tmp_path: Path) -> None:
    train(toy_config(), tmp_path / "run", progress=False)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="attention"):
        train(toy_config(precondition=ARMS["row"]), tmp_path / "run", overwrite=True, progress=False)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_not_finite_saves_the_last_good_step(tmp_path: Path) -> None:
    good = train(toy_config(steps=12), tmp_path / "good", progress=False)
    config = toy_config(task_options={"bad_call": 7}, checkpoint_every=3)
    with pytest.raises(NonFiniteError, match=r"step 8: loss nan.*after step 7 is saved in .*step-00000007"):
        train(config, tmp_path / "bad", progress=False)
    assert list(complete_checkpoints(tmp_path / "bad" / "checkpoints")) == [6, 7]
    steps = (tmp_path / "bad" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in steps] == good.losses[:7]


def test_not_finite_on_a_full_disk_says_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise WriteError("no room")

    monkeypatch.setattr(loop_module, "save_checkpoint", full)
    with pytest.raises(NonFiniteError, match=r"loss nan.*could not be saved: no room"):
        train(toy_config(task_options={"bad_call": 2}), tmp_path, progress=False)


def test_arguments_that_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="resume and overwrite exclude each other"):
        train(toy_config(), tmp_path, resume=True, overwrite=True)


def test_errors_before_the_folder_is_touched(tmp_path: Path) -> None:
    for changes in ({"task": "toys"}, {"task_options": {"hiden": 3}}):
        with pytest.raises(ValueError, match="did you mean"):
            train(toy_config(**changes), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_the_folder_holds_tensorboard_events_of_every_step_once(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = toy_config(checkpoint_every=5, keep_checkpoints=3)
    train(config, tmp_path / "run", progress=False)
    for step in (10, 12):  # as if the run had been killed in its eighth step
        checkpoint = complete_checkpoints(tmp_path / "run" / "checkpoints")[step]
        checkpoint.rename(tmp_path / f"gone-{step}")
    result = train(config, tmp_path / "run", resume=True, progress=False)
    events = event_accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    scalars = events.Scalars("train/loss")
    assert [event.step for event in scalars] == list(range(1, 13))
    assert [event.value for event in scalars] == pytest.approx(result.losses, rel=1e-6)
    assert [event.step for event in events.Scalars("validation/accuracy")] == [12]
