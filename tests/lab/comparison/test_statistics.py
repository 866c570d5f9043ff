import math

import numpy as np
import pytest
from scipy import stats

from preconditioned_attention.lab.comparison.statistics import (
    paired_difference,
    paired_ratio,
    smooth,
    smoothing_window,
    steps_to_reach,
    student_interval,
)


def test_interval_of_three_values_in_closed_form():
    # Student's t with 2 degrees of freedom has the quantile t = (2p - 1) sqrt(2 / (4p (1 - p))).
    interval = student_interval([1.0, 2.0, 6.0])
    p = 0.975
    quantile = (2 * p - 1) * math.sqrt(2 / (4 * p * (1 - p)))
    half = quantile * math.sqrt(7.0) / math.sqrt(3)
    assert interval.mean == 3.0
    assert interval.low == pytest.approx(3.0 - half, rel=1e-12)
    assert interval.high == pytest.approx(3.0 + half, rel=1e-12)
    assert interval.has_spread


def test_paired_interval_agrees_with_the_inverted_paired_t_test():
    generator = np.random.default_rng(0)
    values, reference = generator.normal(0.9, 0.1, 7).tolist(), generator.normal(0.8, 0.1, 7).tolist()
    interval = paired_difference(values, reference)
    expected = stats.ttest_rel(values, reference).confidence_interval(0.95)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), rel=1e-10)


def test_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(1)
    samples = generator.normal(0.3, 2.0, (2000, 3))
    hits = sum(interval.low <= 0.3 <= interval.high for interval in map(student_interval, samples.tolist()))
    # Binomial with p = 0.95: four standard deviations.
    assert abs(hits / 2000 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000)


def test_one_value_has_no_interval():
    interval = student_interval([0.5])
    assert (interval.mean, interval.low, interval.high) == (0.5, None, None)


def test_equal_differences_have_no_spread_though_rounding_makes_them_differ():
    interval = paired_difference([0.9, 0.8, 0.7], [0.8, 0.7, 0.6])
    assert len(set(interval.values)) > 1
    assert not interval.has_spread
    assert not paired_difference([1000.1, 2000.1], [1000.0, 2000.0]).has_spread
    assert paired_difference([0.9, 0.8, 0.7001], [0.8, 0.7, 0.6]).has_spread


def test_ratio_is_the_geometric_mean_and_inverts():
    ratio = paired_ratio([2.0, 8.0], [1.0, 1.0])
    inverse = paired_ratio([1.0, 1.0], [2.0, 8.0])
    assert ratio.mean == pytest.approx(4.0)
    assert (inverse.low, inverse.high) == pytest.approx((1 / ratio.high, 1 / ratio.low))


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_interval_refuses_what_has_no_mean(values):
    with pytest.raises(ValueError, match="finite numbers"):
        student_interval(values)


def test_ratio_refuses_times_that_are_not_positive():
    with pytest.raises(ValueError, match="positive"):
        paired_ratio([1.0, 0.0], [1.0, 1.0])


def test_pairs_must_match():
    with pytest.raises(ValueError, match="shorter"):
        paired_difference([1.0, 2.0], [1.0])


def test_smooth_is_a_trailing_mean():
    assert smooth([4.0, 2.0, 0.0, 2.0], 2) == [3.0, 1.0, 1.0]
    assert smooth([4.0, 2.0], 1) == [4.0, 2.0]
    with pytest.raises(ValueError, match="window"):
        smooth([1.0], 2)


def test_steps_are_counted_from_one_and_from_the_first_full_window():
    assert steps_to_reach([3.0, 1.0, 1.0], 2.0, 2) == 2
    assert steps_to_reach([3.0, 2.0, 1.0], 1.0, 1) == 3
    assert steps_to_reach([3.0, 2.0, 1.0], 0.5, 1) is None
    assert steps_to_reach([0.0], 0.5, 2) is None


@pytest.mark.parametrize(("steps", "window"), [(1, 1), (20, 1), (300, 15), (1000, 50)])
def test_window_is_a_twentieth_of_the_run(steps, window):
    assert smoothing_window(steps) == window
