import random

import pytest

from preconditioned_attention.lab.tasks.glue_metrics import accuracy, f1, matthews, pearson

metrics = pytest.importorskip("sklearn.metrics")
stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize("seed", range(20))
def test_they_are_those_of_scikit_learn_and_scipy(seed: int) -> None:
    draw = random.Random(seed)
    labels = [float(draw.random() < 0.3) for _ in range(200)]
    predictions = [label if draw.random() < 0.7 else float(draw.random() < 0.5) for label in labels]
    assert accuracy(predictions, labels) == pytest.approx(metrics.accuracy_score(labels, predictions), abs=1e-14)
    assert f1(predictions, labels) == pytest.approx(metrics.f1_score(labels, predictions), abs=1e-14)
    assert matthews(predictions, labels) == pytest.approx(metrics.matthews_corrcoef(labels, predictions), abs=1e-13)
    scores = [draw.uniform(0, 5) for _ in labels]
    guesses = [score + draw.gauss(0, 2) for score in scores]
    assert pearson(guesses, scores) == pytest.approx(stats.pearsonr(guesses, scores).statistic, abs=1e-13)


@pytest.mark.parametrize(("predictions", "labels"), [([0.0] * 4, [0, 1, 1, 0]), ([0, 1, 1, 0], [1.0] * 4)])
def test_predictions_or_labels_that_are_all_alike(predictions: list[float], labels: list[float]) -> None:
    assert matthews(predictions, labels) == metrics.matthews_corrcoef(labels, predictions) == 0
    assert pearson(predictions, labels) == 0.0
    assert f1(predictions, labels) == pytest.approx(metrics.f1_score(labels, predictions))
    assert f1([0.0, 0.0], [0.0, 0.0]) == 0.0


def test_more_than_two_classes() -> None:
    assert accuracy([0, 1, 2, 2], [0, 1, 1, 2]) == 0.75
