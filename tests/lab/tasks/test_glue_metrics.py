import random

import pytest
import torch
from torch import Tensor

from preconditioned_attention.lab.data.glue import GLUE
from preconditioned_attention.lab.tasks.glue_metrics import METRICS, accuracy, f1, matthews, pearson

pytest.importorskip("sklearn")


def numbers(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def f1_by_hand(predictions: list[float], labels: list[float]) -> float:
    predicted, actual = numbers(predictions) == 1, numbers(labels) == 1
    return 2 * float((predicted & actual).sum()) / float(predicted.sum() + actual.sum())


def correlation(predictions: list[float], labels: list[float]) -> float:
    """Of two binary variables it is Matthews'."""
    x, y = (numbers(values) - numbers(values).mean() for values in (predictions, labels))
    return float((x / x.norm()) @ (y / y.norm()))


@pytest.mark.parametrize("seed", range(20))
def test_they_are_what_their_definitions_say(seed: int) -> None:
    draw = random.Random(seed)
    labels = [float(draw.random() < 0.3) for _ in range(200)]
    predictions = [label if draw.random() < 0.7 else float(draw.random() < 0.5) for label in labels]
    right = sum(prediction == label for prediction, label in zip(predictions, labels, strict=True))
    assert accuracy(predictions, labels) == pytest.approx(right / 200, abs=1e-14)
    assert f1(predictions, labels) == pytest.approx(f1_by_hand(predictions, labels), abs=1e-14)
    assert matthews(predictions, labels) == pytest.approx(correlation(predictions, labels), abs=1e-13)
    scores = [draw.uniform(0, 5) for _ in labels]
    guesses = [score + draw.gauss(0, 2) for score in scores]
    assert pearson(guesses, scores) == pytest.approx(correlation(guesses, scores), abs=1e-13)


@pytest.mark.parametrize(("predictions", "labels"), [([0.0] * 4, [0.0, 1, 1, 0]), ([0.0, 1, 1, 0], [1.0] * 4)])
@pytest.mark.filterwarnings("error")
def test_predictions_or_labels_that_are_all_alike(predictions: list[float], labels: list[float]) -> None:
    assert matthews(predictions, labels) == 0.0
    assert pearson(predictions, labels) == 0.0
    assert f1(predictions, labels) == pytest.approx(f1_by_hand(predictions, labels))


@pytest.mark.filterwarnings("error")
def test_neither_predictions_nor_labels_of_class_1() -> None:
    assert f1([0.0, 0.0], [0.0, 0.0]) == 0.0


def test_more_than_two_classes() -> None:
    assert accuracy([0, 1, 2, 2], [0, 1, 1, 2]) == 0.75


def test_every_task_has_its_metric() -> None:
    assert {task.metric for task in GLUE.values()} == set(METRICS)
