"""Intervals of paired differences and ratios, and the number of steps to reach a loss."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from ..._extras import require

LEVEL = 0.95
WINDOW_FRACTION = 0.05


@dataclass(frozen=True)
class Interval:
    """A mean over pairs and its two-sided interval.

    Args:
        values: the value of each pair, a difference or a ratio.
        mean: their mean.
        low: the lower end; None with fewer than two pairs.
        high: the upper end; None with fewer than two pairs.
        has_spread: whether the values differ by more than rounding errors; if not, the interval is meaningless.
        level: the confidence level.
    """

    values: tuple[float, ...]
    mean: float
    low: float | None
    high: float | None
    has_spread: bool
    level: float = LEVEL


def student_interval(values: Sequence[float], *, scale: float = 0.0) -> Interval:
    """The mean of ``values`` with the 95 % interval ``mean ± t_(n-1) s / sqrt(n)`` (Student 1908).

    It assumes independent, approximately normal values, which a few seeds cannot confirm.

    Args:
        values: finite numbers, at least one.
        scale: the magnitude of the numbers that the values were computed from; it sets the size of rounding errors.

    Raises:
        ValueError: no values, or one that is not finite.
    """
    if not values or not all(math.isfinite(value) for value in values):
        raise ValueError(f"values must be finite numbers, at least one; got {list(values)}")
    mean = statistics.fmean(values)
    rounding = 8 * 2.0**-52 * max(scale, *(abs(value) for value in values))
    has_spread = max(values) - min(values) > rounding
    if len(values) < 2:
        return Interval(tuple(values), mean, None, None, has_spread)
    stats = require("scipy.stats", extra="train")
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * stats.sem(values))
    return Interval(tuple(values), mean, mean - half, mean + half, has_spread)


def paired_difference(values: Sequence[float], reference: Sequence[float]) -> Interval:
    """The interval of ``values[i] - reference[i]``: pairs share the seed, so its common effect cancels."""
    scale = max(abs(value) for value in (*values, *reference))
    return student_interval([value - base for value, base in zip(values, reference, strict=True)], scale=scale)


def paired_ratio(values: Sequence[float], reference: Sequence[float]) -> Interval:
    """The geometric mean of ``values[i] / reference[i]`` and its interval: Student's on the logarithms.

    Raises:
        ValueError: a value is not positive.
    """
    if min(*values, *reference) <= 0:
        raise ValueError("values and reference must be positive")
    logs = student_interval([math.log(value / base) for value, base in zip(values, reference, strict=True)])
    low, high = (None if bound is None else math.exp(bound) for bound in (logs.low, logs.high))
    return Interval(tuple(math.exp(value) for value in logs.values), math.exp(logs.mean), low, high, logs.has_spread)


def smoothing_window(steps: int) -> int:
    """How many steps a training loss is averaged over: 5 % of the run, at least one step."""
    return max(1, round(WINDOW_FRACTION * steps))


def smooth(losses: Sequence[float], window: int) -> list[float]:
    """The mean of the last ``window`` losses at each step from step ``window`` on: ``len(losses) - window + 1`` values.

    Raises:
        ValueError: ``window`` is not between 1 and the number of losses.
    """
    if not 1 <= window <= len(losses):
        raise ValueError(f"window must be from 1 to the number of losses, {len(losses)}; got {window}")
    return [math.fsum(losses[end - window : end]) / window for end in range(window, len(losses) + 1)]


def steps_to_reach(losses: Sequence[float], target: float, window: int) -> int | None:
    """The first step (counted from 1) at which the smoothed loss is at or below ``target``; None if it never is.

    A run shorter than ``window`` has no smoothed loss and reaches nothing.
    """
    if len(losses) < window:
        return None
    for step, loss in enumerate(smooth(losses, window), start=window):
        if loss <= target:
            return step
    return None
