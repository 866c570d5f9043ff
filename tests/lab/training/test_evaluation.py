from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset, default_collate

from preconditioned_attention.lab.training.evaluation import evaluate, is_finite
from preconditioned_attention.lab.training.processes import make_accelerator
from preconditioned_attention.lab.training.state import TrainState, build_state
from tests.helpers.toy_task import Toy, toy_config


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


class Listing(Toy):
    """Returns what cannot be averaged: here the labels, in a list."""

    def evaluate(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor | list[int]]:
        return {**super().evaluate(model, batch), "labels": batch[1].tolist()}


class WholeSplit(Listing):
    metric = "first"

    def score(self, dataset: TensorDataset, values: dict[str, list[int]]) -> dict[str, float]:
        assert values == {"labels": dataset.tensors[1].tolist()}
        return {"first": float(values["labels"][0]), "size": float(len(values["labels"]))}


def test_lists_go_to_the_score_in_the_order_of_the_dataset(tmp_path: Path) -> None:
    state = state_of(WholeSplit(), tmp_path, batch_size=5)
    test = state.task.datasets().test
    metrics = evaluate(state, test, split="test")
    assert metrics["first"] == test.tensors[1][0]
    assert metrics["size"] == len(test)
    assert metrics["accuracy"] == evaluate(state_of(Toy(), tmp_path), test, split="test")["accuracy"]


def test_batches_are_made_by_the_splits_own_collate(tmp_path: Path) -> None:
    sizes = []

    def collate(examples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
        sizes.append(len(examples))
        return default_collate(examples)

    evaluate(state_of(Toy(), tmp_path, batch_size=5), Toy().datasets().test, split="test", collate=collate)
    assert sizes == [5, 5, 5, 2]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (NoMetric(), r"must report its metric 'accuracy'; got \['loss'\]"),
        (MeanLoss(), r"shape \(B,\); got 'loss' of shape \(\)"),
        (Listing(), r"returns lists, labels; it must define score"),
    ],
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
