from pathlib import Path

import pytest
import torch

from preconditioned_attention.lab.training import train
from preconditioned_attention.lab.training.checkpoint import complete_checkpoints
from preconditioned_attention.lab.training.config import TrainConfig
from preconditioned_attention.lab.training.processes import make_accelerator, raise_on_all_ranks
from tests.helpers.digits_task import TASK, digits_options
from tests.helpers.toy_task import toy_config
from tests.helpers.training_worker import losses, records, run_alone, run_on_two

VIT = digits_options(embed_dim=16, depth=2, num_heads=2)


def digits_config(**changes: object) -> TrainConfig:
    options = {"task": TASK, "task_options": VIT, "batch_size": 32, "learning_rate": 3e-3, "steps": 100}
    return toy_config(**{**options, "precondition": {"gradient": "full"}, **changes})


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_two_processes_follow_the_same_curve(tmp_path: Path, accumulation_steps: int) -> None:
    config = digits_config(precision="float64", clip_norm=1.0, accumulation_steps=accumulation_steps)
    alone = run_alone(config, tmp_path / "one")
    assert alone.ended_well, alone.errors
    for run in run_on_two(config, tmp_path / "two"):
        assert run.ended_well, run.errors
    one, two = (torch.tensor(losses(tmp_path / name), dtype=torch.float64) for name in ("one", "two"))
    assert len(one) == 100
    assert one[-1] < one[0]
    torch.testing.assert_close(two, one, rtol=0, atol=1e-8)
    (at_end,), (at_end_of_two,) = (records(tmp_path / name, "evaluation") for name in ("one", "two"))
    assert at_end_of_two["accuracy"] == pytest.approx(at_end["accuracy"], abs=1e-12)  # 300 examples, each once
    assert at_end_of_two["loss"] == pytest.approx(at_end["loss"], abs=1e-8)


def test_two_processes_have_the_same_metric_of_the_whole_split(tmp_path: Path) -> None:
    config = toy_config(task="ranked-toy", precision="float64", evaluate_every=4)
    alone = run_alone(config, tmp_path / "one")
    assert alone.ended_well, alone.errors
    for run in run_on_two(config, tmp_path / "two"):
        assert run.ended_well, run.errors
    one, two = (records(tmp_path / name, "evaluation") for name in ("one", "two"))
    assert [row["late_accuracy"] for row in two] == [row["late_accuracy"] for row in one]
    assert len({row["late_accuracy"] for row in one}) > 1
    assert two[-1]["loss"] == pytest.approx(one[-1]["loss"], abs=1e-8)


def test_two_processes_have_the_same_gradients(tmp_path: Path) -> None:
    config = digits_config(steps=1)
    run_alone(config, tmp_path / "one", save_gradients=tmp_path / "one.pt")
    run_on_two(config, tmp_path / "two", save_gradients=tmp_path / "two.pt")
    one, two = (torch.load(tmp_path / f"{name}.pt") for name in ("one", "two"))
    assert len(one) > 20
    flat_one, flat_two = (torch.cat([gradient.flatten() for gradient in part]).double() for part in (one, two))
    assert flat_one.norm() > 0
    assert (flat_two - flat_one).norm() <= 1e-5 * flat_one.norm()


@pytest.mark.parametrize("fsdp", [False, True])
def test_loss_that_is_not_finite_on_one_process_stops_both(fsdp: bool, tmp_path: Path) -> None:
    config = toy_config(task_options={"bad_call": 6, "bad_process": 1, "batch_norm": True})
    for run in run_on_two(config, tmp_path / "run", fsdp=fsdp):
        assert not run.ended_well
        assert "NonFiniteError: step 7: loss nan" in run.errors
    assert list(complete_checkpoints(tmp_path / "run" / "checkpoints")) == [6]
    assert len(losses(tmp_path / "run")) == 6


def test_processes_must_divide_the_batch(tmp_path: Path) -> None:
    for run in run_on_two(toy_config(batch_size=5), tmp_path / "run"):
        assert "batch_size must be a multiple of processes times accumulation_steps, 2 x 1; got 5" in run.errors
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_refused_folder_is_refused_on_every_process(tmp_path: Path) -> None:
    train(toy_config(), tmp_path / "run", progress=False)
    for run in run_on_two(toy_config(), tmp_path / "run"):
        assert "ValueError: output folder" in run.errors


def test_float16_needs_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    with pytest.raises(ValueError, match="'float16' needs a GPU"):
        train(toy_config(precision="float16"), tmp_path, progress=False)


def test_runs_of_different_precision_in_one_process(tmp_path: Path) -> None:
    for precision in ("bfloat16", "float32", "float64", "bfloat16"):
        result = train(toy_config(precision=precision), tmp_path, overwrite=True, progress=False)
        dtype = torch.float64 if precision == "float64" else torch.float32
        assert {parameter.dtype for parameter in result.model.parameters()} == {dtype}
        assert "_original_forward" not in vars(result.model)


def test_every_rank_raises_what_the_block_raised(tmp_path: Path) -> None:
    accelerator = make_accelerator(toy_config(), tmp_path)
    with pytest.raises(KeyError, match="lost"), raise_on_all_ranks(accelerator):
        raise KeyError("lost")
    with raise_on_all_ranks(accelerator):
        pass


def test_processes_that_would_train_alone_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_accelerator(toy_config(), tmp_path)  # this process is alone
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match="2 processes were launched"):
        make_accelerator(toy_config(), tmp_path)
