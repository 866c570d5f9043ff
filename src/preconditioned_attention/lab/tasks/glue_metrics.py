"""The metrics of GLUE, on lists of predictions and labels of a whole split."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def accuracy(predictions: Sequence[float], labels: Sequence[float]) -> float:
    """The share of predictions that are the label."""
    return float((_numbers(predictions) == _numbers(labels)).double().mean())


def f1(predictions: Sequence[float], labels: Sequence[float]) -> float:
    """Harmonic mean of precision and recall of class 1; 0 if there is nothing to be right about."""
    predicted, actual = _numbers(predictions) == 1, _numbers(labels) == 1
    both = float((predicted & actual).sum())
    total = float(predicted.sum() + actual.sum())
    return 2 * both / total if total else 0.0


def matthews(predictions: Sequence[float], labels: Sequence[float]) -> float:
    """Matthews' correlation of two classes; 0 if predictions or labels are all alike.

    Source: B. W. Matthews, Biochimica et Biophysica Acta 405, 1975: Pearson's correlation of two binary variables.
    """
    return pearson(predictions, labels)


def pearson(predictions: Sequence[float], labels: Sequence[float]) -> float:
    """Pearson's correlation; 0 where it is not defined because predictions or labels are all alike."""
    x, y = _numbers(predictions), _numbers(labels)
    if bool((x == x[0]).all() | (y == y[0]).all()):
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    return float((x / x.norm()) @ (y / y.norm()))


def _numbers(values: Sequence[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)
