"""The metrics of GLUE, of predictions and labels of a whole split, by scikit-learn and SciPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..._extras import require


def accuracy(predictions: Sequence[float], labels: Sequence[float]) -> float:
    """The share of predictions that are the label."""
    return float(_sklearn().accuracy_score(labels, predictions))


def f1(predictions: Sequence[float], labels: Sequence[float]) -> float:
    """Harmonic mean of precision and recall of class 1; 0 if neither predictions nor labels have that class."""
    return float(_sklearn().f1_score(labels, predictions, zero_division=0.0))


def matthews(predictions: Sequence[float], labels: Sequence[float]) -> float:
    """Matthews' correlation of two classes; 0 if predictions or labels are all alike."""
    return float(_sklearn().matthews_corrcoef(labels, predictions))


def pearson(predictions: Sequence[float], labels: Sequence[float]) -> float:
    """Pearson's correlation; 0, and not NaN as SciPy has it, if predictions or labels are all alike."""
    if min(len(set(predictions)), len(set(labels))) == 1:
        return 0.0
    return float(require("scipy.stats", extra="train").pearsonr(predictions, labels).statistic)


METRICS: dict[str, Callable[[Sequence[float], Sequence[float]], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews": matthews,
    "pearson": pearson,
}
"""By the names that :data:`preconditioned_attention.lab.data.glue.GLUE` gives them."""


def _sklearn() -> Any:
    return require("sklearn.metrics", extra="language")
