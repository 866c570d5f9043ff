import itertools
import types
from pathlib import Path

import pytest
import torch
from torch.utils.data import default_collate

from preconditioned_attention.lab.training import NonFiniteError
from preconditioned_attention.lab.training.processes import make_accelerator
from preconditioned_attention.lab.training.state import TrainState, build_state
from preconditioned_attention.lab.training.step import optimizer_step
from tests.helpers.toy_task import Toy, toy_config


def begin(task: Toy, folder: Path, **options: object) -> tuple[TrainState, itertools.cycle]:
    config = toy_config(**options)
    state = build_state(config, task, make_accelerator(config, folder), lambda model: model)
    train = task.datasets().train
    size = config.batch_size // config.accumulation_steps
    starts = range(0, 50, size)
    batches = [default_collate([train[index] for index in range(start, start + size)]) for start in starts]
    return state, itertools.cycle(batches)


def weights(state: TrainState) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in state.unwrapped.state_dict().values()]


def test_the_record_tells_the_step(tmp_path: Path) -> None:
    state, batches = begin(Toy(), tmp_path, warmup_steps=2)
    first, second = optimizer_step(state, batches), optimizer_step(state, batches)
    assert (first["step"], second["step"], state.step) == (1, 2, 2)
    assert (first["learning_rate"], second["learning_rate"]) == (0.005, 0.01)
    assert all(record["seconds"] > 0 and record["gradient_norm"] > 0 for record in (first, second))


def test_accumulated_micro_batches_are_one_batch(tmp_path: Path) -> None:
    whole, batches = begin(Toy(), tmp_path / "one", precision="float64")
    one = [optimizer_step(whole, batches) for _ in range(4)]
    parts, batches = begin(Toy(), tmp_path / "two", precision="float64", accumulation_steps=5)
    two = [optimizer_step(parts, batches) for _ in range(4)]
    for name in ("loss", "gradient_norm"):
        assert [record[name] for record in two] == pytest.approx([record[name] for record in one], abs=1e-12)
    torch.testing.assert_close(weights(parts), weights(whole), rtol=0, atol=1e-10)


def test_the_gradient_is_clipped(tmp_path: Path) -> None:
    norms = []
    state, batches = begin(Toy(), tmp_path, clip_norm=0.01)
    step = state.optimizer.step

    def watch() -> None:
        gradients = [parameter.grad for parameter in state.unwrapped.parameters()]
        norms.append(torch.nn.utils.get_total_norm(gradients).item())
        step()

    state.optimizer.step = watch
    record = optimizer_step(state, batches)
    assert record["gradient_norm"] > 0.1  # the norm that is shown is the one before
    assert norms == [pytest.approx(0.01, rel=1e-3)]


@pytest.mark.parametrize(
    ("options", "task"),
    [({}, Toy(bad_call=3, batch_norm=True)), ({"ema_decay": 0.9, "accumulation_steps": 2}, Toy(bad_call=7))],
    ids=["loss", "one micro-batch"],
)
def test_not_finite_leaves_the_state_as_it_was(tmp_path: Path, options: dict, task: Toy) -> None:
    state, batches = begin(task, tmp_path, **options)
    for _ in range(3):
        optimizer_step(state, batches)
    before, average = weights(state), [] if state.average is None else [p.clone() for p in state.average.parameters()]
    with pytest.raises(NonFiniteError, match=r"step 4: loss nan, .*learning rate 0\.0.*Try a lower learning rate"):
        optimizer_step(state, batches)
    assert state.step == 3
    torch.testing.assert_close(weights(state), before, rtol=0, atol=0)
    if state.average is not None:
        torch.testing.assert_close(list(state.average.parameters()), average, rtol=0, atol=0)


def test_gradient_that_is_not_finite(tmp_path: Path) -> None:
    state, batches = begin(Toy(scale=1e38), tmp_path)  # the loss is finite in float32, its gradient's norm is not
    with pytest.raises(NonFiniteError, match="gradient norm inf"):
        optimizer_step(state, batches)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize(("scale", "stops"), [(1024.0, False), (1.0, True)])
def test_a_gradient_scaler_may_skip_a_step(tmp_path: Path, scale: float, stops: bool) -> None:
    state, batches = begin(Toy(scale=1e38), tmp_path)
    scaler = types.SimpleNamespace(get_scale=lambda: scale)
    clip = state.accelerator.clip_grad_norm_
    backward = state.accelerator.backward
    state.accelerator.backward = lambda loss: (setattr(state.accelerator, "scaler", None), backward(loss))

    def clip_then_scaled(*arguments: object) -> torch.Tensor:
        norm = clip(*arguments)
        state.accelerator.scaler = scaler  # the CPU has no float16 training: its scaler is stood in for
        return norm

    state.accelerator.clip_grad_norm_ = clip_then_scaled
    state.optimizer.step = lambda: None  # what a scaler does on overflow
    if stops:
        with pytest.raises(NonFiniteError):
            optimizer_step(state, batches)
    else:
        assert optimizer_step(state, batches)["gradient_norm"] == float("inf")


def test_random_numbers_are_those_of_the_step_not_of_the_past(tmp_path: Path) -> None:
    state, batches = begin(Toy(dropout=0.5), tmp_path / "one")
    other, same_batches = begin(Toy(dropout=0.5), tmp_path / "two")
    for _ in range(3):
        torch.rand(7)  # somebody else draws
        assert optimizer_step(state, batches)["loss"] == optimizer_step(other, same_batches)["loss"]
