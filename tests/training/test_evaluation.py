from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from preconditioned_attention.training.evaluation import evaluate, is_finite
from preconditioned_attention.training.processes import make_accelerator
from preconditioned_attention.training.state import TrainState, build_state
from tests.training.toy import Toy, toy_config


def state_of(task: Toy, folder: Path, **options: object) -> TrainState:
    config = toy_config(**options)
    return build_state(config, task, make_accelerator(config, folder), lambda model: model)


@pytest.mark.parametrize("batch_size", [2, 5, 13, 50])
def test_every_example_counts_once(tmp_path: Path, batch_size: int) -> None:
    state = state_of(Toy(dropout=0.5), tmp_path, batch_size=batch_size)
    validation = state.task.datasets().validation
    expected = state.task.evaluate(state.unwrapped.eval(), validation.tensors)
    state.unwrapped.train()
    metrics = evaluate(state, validation, split="validation")
    assert metrics.keys() == {"loss", "accuracy"}
    for name, value in metrics.items():
        assert value == pytest.approx(expected[name].double().mean().item(), abs=1e-7)
    assert state.unwrapped.training


def test_the_averaged_weights_are_evaluated(tmp_path: Path) -> None:
    state = state_of(Toy(), tmp_path, ema_decay=0.5)
    before = evaluate(state, state.task.datasets().test, split="test")
    with torch.no_grad():
        for parameter in state.unwrapped.parameters():
            parameter.zero_()
    assert evaluate(state, state.task.datasets().test, split="test") == before


class NoMetric(Toy):
    def evaluate(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        return {"loss": super().evaluate(model, batch)["loss"]}


class MeanLoss(Toy):
    def evaluate(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        values = super().evaluate(model, batch)
        return {**values, "loss": values["loss"].mean()}


@pytest.mark.parametrize(
    ("task", "message"),
    [(NoMetric(), r"must return 'accuracy'; got \['loss'\]"), (MeanLoss(), r"shape \(B,\); got 'loss' of shape \(\)")],
)
def test_what_a_task_must_return(tmp_path: Path, task: Toy, message: str) -> None:
    state = state_of(task, tmp_path)
    with pytest.raises(ValueError, match=message):
        evaluate(state, task.datasets().test, split="test")


def test_an_empty_split(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the test split of task 'toy' is empty"):
        evaluate(state_of(Toy(), tmp_path), torch.utils.data.TensorDataset(torch.empty(0, 6)), split="test")


def test_is_finite() -> None:
    assert is_finite({"loss": 1.0})
    assert not is_finite({"loss": 1.0, "accuracy": float("nan")})
